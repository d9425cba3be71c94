"""What the tool itself costs: the same plan against its own sink on this host.

Owns      calibrate()
Flow      a sink in a process of its own → closed loop as fast as it goes → one connection, quietly → Calibration
Limits    CEILING_S and FLOOR_S
Errors    RuntimeError when the sink takes nothing of this plan
Bugs      source and sink share the machine's CPUs: the ceiling is that of both together
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from smtp_blaster.plan import Plan
from smtp_blaster.result import Calibration, Run
from smtp_blaster.sink_plan import SinkPlan
from smtp_blaster.sink_processes import serve
from smtp_blaster.summary import percentile
from smtp_blaster.workers import run

CEILING_S, FLOOR_S, WARMUP_S = 3.0, 1.0, 0.5
SINK_S = 60.0  # it ends after so long, whatever happens to us
START_S = 20.0
NEAR = 0.7  # of the ceiling


def calibrate(plan: Plan, rate: float) -> Calibration:
    """rate: messages/s of the run that is to be judged.  Raises RuntimeError."""
    with _sink(plan) as port:
        base = msgspec.structs.replace(
            plan, target=f"127.0.0.1:{port}", owned=True, messages=0, rate=0.0, arrivals="constant", ramp_s=0.0,
            warmup_s=WARMUP_S, retry_s=0.0, ledger="",
            auth_mechanism="" if plan.auth_mechanism == "XOAUTH2" else plan.auth_mechanism,
        )  # fmt: skip
        ceiling = run(msgspec.structs.replace(base, duration_s=WARMUP_S + CEILING_S)).result
        floor = run(
            msgspec.structs.replace(base, duration_s=WARMUP_S + FLOOR_S, connections=1, processes=1)
        ).result
    if not ceiling.accepted or not floor.accepted:
        raise RuntimeError(f"its own sink took nothing of this plan: {ceiling.replies} {ceiling.troubles}")
    return Calibration(
        messages_per_s=ceiling.messages_per_s,
        cpu_us_per_message=ceiling.cpu_us_per_message,
        floor_ms={stage: percentile(counts, (0.5,))[0] for stage, counts in floor.latency.items()},
        ceiling_used=rate / ceiling.messages_per_s,
    )


def warn(found: Run) -> None:
    """Adds a note when the run was near the tool's own ceiling."""
    calibration = found.calibration
    if calibration is not None and calibration.ceiling_used >= NEAR:
        found.notes.insert(
            0,
            f"this run reached {calibration.ceiling_used:.0%} of what the tool reaches against its own sink on this "
            "machine: it measures the tool as much as the server (more --processes, or a machine of its own)",
        )


@contextlib.contextmanager
def _sink(plan: Plan) -> Iterator[int]:
    """The port of a sink that takes what the plan sends."""
    with tempfile.TemporaryDirectory(prefix="smtp-blaster-") as folder:
        sink = SinkPlan(auth=("any",) if plan.auth else (), duration_s=SINK_S)
        if plan.tls != "off":
            certificate, key = _certificate(Path(folder))
            sink = msgspec.structs.replace(sink, tls=plan.tls, certificate=certificate, key=key)
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(sink, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(START_S):
                raise RuntimeError("its own sink did not start")
            yield ours.recv()
        finally:
            process.terminate()
            process.join()
            ours.close()


def _serve(plan: SinkPlan, pipe: Connection) -> None:
    ready: Callable[[int], None] = pipe.send
    serve(plan, 1, ready)


def _certificate(folder: Path) -> tuple[str, str]:
    from gateway.cli.init import self_signed  # only for TLS: it brings the library cryptography

    paths = []
    for name, octets in zip(("certificate", "key"), self_signed("sink.example.test"), strict=True):
        path = folder / name
        path.write_bytes(octets)
        paths.append(str(path))
    return paths[0], paths[1]
