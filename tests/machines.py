"""What state machines of batchers have in common."""

from concurrent.futures import wait

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from shared import TIMEOUT


class Asking(RuleBasedStateMachine):
    """Requests that are cancelled and waited for, before a gate that closes and opens.

    Args:
        executor: Runs them.
        gate: Stands before its device.
    """

    def __init__(self, executor, gate):
        super().__init__()
        self.executor = executor
        self.gate = gate
        self.asked = []  # each with a `future`
        self.cancelled = set()
        gate.release()

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 20))
    def cancel(self, number):
        number %= len(self.asked)
        if self.asked[number].future.cancel():
            self.cancelled.add(number)

    @rule()
    def hold(self):
        self.gate.hold()

    @rule(times=st.sampled_from([1, 2, 5, float("inf")]))
    def release(self, times):
        self.gate.release(times)

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 20))
    def wait_for_one(self, number):
        future = self.asked[number % len(self.asked)].future
        self.gate.release()
        assert not wait([future], TIMEOUT).not_done
