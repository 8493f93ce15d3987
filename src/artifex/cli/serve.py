"""`artifex serve`."""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from artifex.cli.failures import needs
from artifex.cli.options import ActorCpus, ActorGpus, BatchSize, Dtype, Engine, RayAddress, RunsOn


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Bundled models, export directories or module:factory; NAME=DIRECTORY gives one a name.",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of gRPC.")] = 8001,
    grpc: Annotated[bool, typer.Option(help="Whether to serve gRPC.")] = True,
    watch: Annotated[bool, typer.Option("--watch", help="Load new checkpoints and exports.")] = False,
    grace: Annotated[float, typer.Option(min=0, help="Seconds to finish requests when stopped.")] = 30.0,
    keep_alive: Annotated[
        int,
        typer.Option(min=1, help="Seconds an idle connection stays open; longer than your load balancer's."),
    ] = 75,
    root_path: Annotated[str, typer.Option(help="Path under which a proxy shows this server: /models.")] = "",
    proxy_headers: Annotated[
        bool,
        typer.Option("--proxy-headers", help="Believe the X-Forwarded headers of --forwarded-allow-ips."),
    ] = False,
    forwarded_allow_ips: Annotated[
        str, typer.Option(help="Addresses of the proxies, with commas between them; * is all.")
    ] = "127.0.0.1",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds a request may wait; 0 is for ever.")] = 60.0,
    max_body: Annotated[int, typer.Option(min=1, help="Largest body of a request, in MiB.")] = 32,
    max_rows: Annotated[int, typer.Option(min=1, help="Most rows of a request.")] = 4096,
    max_queued_rows: Annotated[int, typer.Option(min=1, help="Most rows that wait, a model.")] = 32768,
    batch_size: BatchSize = None,
    dtype: Dtype = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="One batch size for all, so that a seed's bits do not depend on load."
        ),
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="ARTIFEX_API_KEY", help="Key that requests must bring.", show_envvar=True),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin whose scripts may call; may be repeated.")
    ] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log each request.")] = False,
    log_json: Annotated[
        bool | None, typer.Option(help="Log JSON; the default where stderr is no terminal.")
    ] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="Private key, PEM.")] = None,
    ssl_keyfile_password: Annotated[
        str | None, typer.Option(envvar="ARTIFEX_SSL_KEYFILE_PASSWORD", help="Of the private key.")
    ] = None,
    ssl_ca_certs: Annotated[
        Path | None, typer.Option(help="Authorities, PEM: clients must have a certificate of theirs.")
    ] = None,
    engine: RunsOn = Engine.local,
    ray_address: RayAddress = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Processes on Ray; the fewest, with --max-replicas.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Most processes on Ray; they come and go with the requests.")
    ] = None,
    actor_cpus: ActorCpus = None,
    actor_gpus: ActorGpus = None,
) -> None:
    """Serve models over HTTP and gRPC (the Open Inference Protocol)."""
    with needs("serve"):
        from artifex.serving import Tls, create_app, run_server
        from artifex.serving.observe.events import show_events
    from artifex.cli.factories import is_factory, make_pipeline
    from artifex.cli.on_ray import refuse_factory, runs_on_ray
    from artifex.cli.run import compute_dtype, use_cache
    from artifex.generative_models.core.errors import InputError
    from artifex.ray.cluster import name_everywhere

    on_ray = runs_on_ray(
        engine,
        num=replicas,
        cpus=actor_cpus,
        gpus=actor_gpus,
        ssl_certfile=ssl_certfile,
        access_log=access_log,
    )
    if not on_ray and max_replicas is not None:
        raise InputError("--max-replicas goes with --engine ray")
    if (ssl_certfile is None) != (ssl_keyfile is None):
        raise InputError("TLS takes both --ssl-certfile and --ssl-keyfile")
    logging.disable(logging.NOTSET)  # events are what this command says
    show_events(as_json=not sys.stderr.isatty() if log_json is None else log_json)
    use_cache()
    named = _named(models)
    if on_ray:
        for model in named.values():
            refuse_factory(model)
        named = {name: name_everywhere(model) for name, model in named.items()}
    served: dict[str, Any] = dict(named)
    for name, model in named.items():
        if is_factory(model):
            served[name] = make_pipeline(model, batch_size=batch_size, dtype=compute_dtype(dtype))
    make_app = functools.partial(
        create_app,
        served,
        batch_size=batch_size,
        dtype=compute_dtype(dtype),
        api_key=api_key or None,
        max_body_bytes=max_body << 20,
        max_rows=max_rows,
        max_queued_rows=max_queued_rows,
        timeout=timeout or None,
        deterministic=deterministic,
        cors_origins=cors_origin or (),
        access_log=access_log,
        watch_seconds=1.0 if watch else None,
    )
    if on_ray:
        with needs("ray"):
            from artifex.ray import run_on_ray
        status = run_on_ray(
            make_app,
            list(named),
            host=host,
            port=port,
            grpc_port=grpc_port if grpc else None,
            replicas=replicas or 1,
            max_replicas=max_replicas,
            num_cpus=1.0 if actor_cpus is None else actor_cpus,
            num_gpus=actor_gpus or 0.0,
            grace=grace,
            address=ray_address,
        )
        raise typer.Exit(status)
    tls = None
    if ssl_certfile is not None and ssl_keyfile is not None:
        tls = Tls(ssl_certfile, ssl_keyfile, ssl_keyfile_password, ssl_ca_certs)
    status = run_server(
        make_app(),
        host=host,
        port=port,
        grpc_port=grpc_port if grpc else None,
        grace=grace,
        keep_alive=keep_alive,
        root_path=root_path,
        trusted_proxies=forwarded_allow_ips if proxy_headers else None,
        tls=tls,
    )
    raise typer.Exit(status)


def _named(models: list[str]) -> dict[str, str]:
    """The models by name: what stands before `=`, or the last part of the path."""
    from artifex.cli.factories import is_factory
    from artifex.generative_models.core.directories import name_of
    from artifex.generative_models.core.errors import InputError

    named: dict[str, str] = {}
    for model in models:
        name, equals, path = model.partition("=")
        if not equals or os.sep in name:
            name, path = model.rpartition(":")[2] if is_factory(model) else name_of(model), model
        if name in named:
            raise InputError(f"two models are called {name}; name them: NAME=DIRECTORY")
        named[name] = path
    return named
