"""A team over the machines of a Ray cluster: plain actors, one for each worker; the driver alone holds the results.

A machine needs the project at the same place, what it is installed with, and the model; it shares no disk with others.
"""

import hashlib
import inspect
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from simpo.console import UserError, warn
from simpo.engine.team import Lost, Worker, outcome_of
from simpo.files import weights_digest
from simpo.model_files import check_whole_model

REACHABLE = 10  # seconds in which an address answers
HEALTHY = 30  # ... and Ray's head says that it is one
STARTED = 120  # seconds in which machines start a process that looks at them
PATIENCE = 60  # seconds without any worker, after which that is said
ITS_OWN = {"VLLM_HOST_IP", "VLLM_PORT"}  # variables that belong to one machine


class Cluster:
    """Workers as actors, each on GPUs of one machine, or on a CPU where the cluster has no GPUs.

    Args:
        address: HOST:PORT of the cluster's head. This machine is one of the cluster's.
        model: what every machine must have: a folder, the same as here, or a name on the hub.
        make: a class, or a partial of one, that every machine can import.
        gpus: of each worker.

    Raises:
        UserError: no such cluster, no machine with that many GPUs, or a machine that differs from this one.
    """

    def __init__(self, address: str, model: str, make: Callable[[], Worker], count: int, gpus: int):
        connect(address)
        self.make, self.count, self.names = make, count, {}
        self.calls: dict[Any, int] = {}
        self.actors: dict[int, Any] = {}
        self.starting: set[int] = set()
        self.told = False
        self.facts = facts(make, model)
        try:
            self.find_room(count, gpus)
        except BaseException:
            self.close()
            raise

    def find_room(self, count: int, gpus: int) -> None:
        """See what machines there are, and compare each with this one, before anything is loaded."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        self.on_gpus = any(node["Resources"].get("GPU") for node in nodes)
        kind, amount = ("GPU", gpus) if self.on_gpus else ("CPU", 1)
        check_room(nodes, kind, amount, count)
        cores = sum(node["Resources"].get("CPU", 0) for node in nodes)
        passed = {key: v for key, v in os.environ.items() if key.startswith("VLLM_") and key not in ITS_OWN}
        passed["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, int(cores) // count)))
        self.options = {
            "num_cpus": 1,
            "num_gpus": gpus if self.on_gpus else 0,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
            "runtime_env": {"env_vars": passed},
        }
        self.check_machines([node for node in nodes if node["Resources"].get(kind, 0) >= amount])

    def check_machines(self, nodes: list[dict[str, Any]]) -> None:
        """Compare each with this one."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        look = ray.remote(num_cpus=0, max_retries=0)(outcome_of_check)
        looks = {
            node["NodeManagerHostname"] + " " + node["NodeManagerAddress"]: look.options(
                scheduling_strategy=On(node["NodeID"], soft=False)
            ).remote(self.make, self.facts)
            for node in nodes
        }
        for name, ref in looks.items():
            try:
                answer = ray.get(ref, timeout=STARTED)
            except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
                warn(f"machine {name} is lost")  # it died a moment ago: until it was missed it counted as alive
                continue
            except ray.exceptions.RayError as error:
                answer = UserError(last_line(str(error)))
            if isinstance(answer, Exception):
                raise UserError(f"machine {name}: {answer}")

    def open(self, member: int) -> None:
        import ray

        self.starting.add(member)
        self.actors[member] = ray.remote(Seat).options(**self.options).remote()
        # its first call alone: what is given to an actor that has no place yet waits with it
        self.calls[self.actors[member].start.remote(self.make, self.facts)] = member

    def ask(self, member: int, items: list[tuple[int, Any]]) -> None:
        self.calls[self.actors[member].work.remote(items)] = member

    def answers(self) -> list[tuple[int, Any]]:
        import ray

        ready: list[Any] = []
        while not ready:
            ready, _ = ray.wait(list(self.calls), timeout=PATIENCE)
            if not ready and not self.told and self.starting.issuperset(self.calls.values()):
                warn("no engine runs yet: they load, or wait for a machine that has room")
                self.told = True
        ready, _ = ray.wait(list(self.calls), num_returns=len(self.calls), timeout=0)
        return [(self.calls[ref], self.receive(self.calls.pop(ref), ref)) for ref in ready]

    def receive(self, member: int, ref: Any) -> Any:
        import ray

        started = member in self.starting
        self.starting.discard(member)
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayActorError as error:  # of a dead machine first "unavailable", later "died"
            ray.kill(self.actors[member])
            return Lost(last_line(str(error)))
        except ray.exceptions.RayError as error:
            ray.kill(self.actors[member])
            return UserError(last_line(str(error))) if started else Lost(last_line(str(error)))
        if isinstance(answer, Lost):
            ray.kill(self.actors[member])
        elif started and isinstance(answer, dict):
            self.names[member] = f"engine {member} on {answer['machine']}"
        return answer

    def name(self, member: int) -> str:
        return self.names.get(member, f"engine {member}")

    def close(self) -> None:
        import ray

        for actor in self.actors.values():
            ray.kill(actor)
        ray.shutdown()


class Seat:
    """The actor: a worker in its place. What a user can mend comes back as a value."""

    def start(self, make: Callable[[], Worker], expected: dict[str, Any]) -> Any:
        def begin() -> dict[str, Any]:
            check(make, expected)
            self.worker = make()
            return self.worker.start() | {"machine": machine()}

        answer = outcome_of(begin)
        return UserError(f"machine {machine()}: {answer}") if isinstance(answer, Exception) else answer

    def work(self, items: list[tuple[int, Any]]) -> Any:
        return outcome_of(lambda: self.worker.work(items))


def machine() -> str:
    return f"{socket.gethostname()} {os.environ.get('RAY_NODE_ID', '')[:4]}".strip()


def last_line(text: str) -> str:
    """What Ray's errors say in short: their text ends with the cause, after a stack and a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def connect(address: str) -> None:
    """Join the cluster as its driver.

    Raises:
        UserError: Ray is not installed, or no cluster of the same versions answers there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"ray_address: {address!r} is not HOST:PORT")
    try:
        import ray
    except ImportError as error:
        raise UserError("Ray is not installed: pip install -e '.[cluster]'") from error
    where = f"ray_address: no Ray cluster that this machine belongs to answers at {address}"
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHABLE).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"{where} ({error}); start one: ray start --head, and ray start --address=...") from error
    # in a process of its own: Ray's client waits for minutes, or aborts, where what listens is not Ray's head
    words = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True, timeout=HEALTHY)
    except subprocess.SubprocessError as error:
        said = last_line(error.stderr) if isinstance(error, subprocess.CalledProcessError) else ""
        raise UserError(f"{where} ({said or 'what listens there is not its head'})") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"{where} ({last_line(str(error))})") from error


def check_room(nodes: list[dict[str, Any]], kind: str, amount: int, count: int) -> None:
    """Refuse a cluster without a machine for one worker; say when there is none for all."""
    found = sorted(int(node["Resources"].get(kind, 0)) for node in nodes)
    shown = f"{len(nodes)} machines with {', '.join(map(str, found))} {kind}s"
    room = sum(each // amount for each in found)
    if room == 0:
        raise UserError(
            f"tensor_parallel_size: an engine needs {amount} {kind}s of one machine, and the cluster has {shown}"
        )
    if room < count:
        warn(
            f"data_parallel_size: the cluster has room for {room} of {count} engines ({shown}); the others start "
            "when machines join"
        )


def facts(make: Callable[[], Worker], model: str) -> dict[str, Any]:
    """What must be the same on all machines."""
    import ray

    return {
        "Python": platform.python_version(),
        "ray": ray.__version__,
        "vllm": installed("vllm"),
        "torch": installed("torch"),
        "transformers": installed("transformers"),
        "simpo": sources_digest(make),
        "model": model,
        "weights": weights_digest(model),
    }


def installed(package: str) -> str | None:
    names = metadata.packages_distributions().get(package)
    return metadata.version(names[0]) if names else None


def sources_digest(make: Callable[[], Worker]) -> str:
    """A digest of the project's code that runs on a machine: this package, and the folder of the worker's class."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parents[1], Path(inspect.getfile(make.func)).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def check(make: Callable[[], Worker], expected: dict[str, Any]) -> None:
    """Compare this machine with the driver's.

    Raises:
        UserError: what differs, or what is missing.
    """
    model = expected["model"]
    check_whole_model(model, "model")
    for name, here in facts(make, model).items():
        if here != expected[name]:
            raise UserError(
                f"{name} is {here} there and {expected[name]} where the command runs; every machine must have the same"
            )


def outcome_of_check(make: Callable[[], Worker], expected: dict[str, Any]) -> Any:
    return outcome_of(lambda: check(make, expected))
