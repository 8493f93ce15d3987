// Latents: draws of a normal distribution, and what lies between two of them.

// Vectors of standard normals, the same for the same seed.
export function normals(seed, count, size) {
  const uniform = mulberry32(seed);
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()); // Box and Muller
  return Array.from({ length: count }, () => Array.from({ length: size }, normal));
}

// Along a great circle, so that what is between two draws is as long as a draw:
// (sin((1 - t) w) a + sin(t w) b) / sin(w), where w is the angle between a and b. Shoemake, 1985.
// Arrays may be nested.
export function slerp(a, b, t) {
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b) || 1);
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  if (Math.sin(angle) < 1e-6) return lerp(a, b, t);
  const [of_a, of_b] = [Math.sin((1 - t) * angle), Math.sin(t * angle)].map((sine) => sine / Math.sin(angle));
  return combined(a, b, of_a, of_b);
}

// Along a line; arrays may be nested.
export function lerp(a, b, t) {
  return combined(a, b, 1 - t, t);
}

function combined(a, b, of_a, of_b) {
  return Array.isArray(a) ? a.map((value, i) => combined(value, b[i], of_a, of_b)) : of_a * a + of_b * b;
}

function dot(a, b) {
  return Array.isArray(a) ? a.reduce((sum, value, i) => sum + dot(value, b[i]), 0) : a * b;
}

// Numbers in [0, 1), by Tommy Ettinger's generator of 32 bits.
function mulberry32(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}
