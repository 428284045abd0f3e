"""Engines and reward models over a Ray cluster: two machines are two nodes here, with token authentication."""

import json
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from annotate_world import write_candidates
from conftest import ROOT, write_jsonl
from forked import Started
from workers import Doubler

import reward_model_annotate
from simpo.console import UserError
from simpo.engine import cluster
from simpo.engine.cluster import Cluster, check_room
from simpo.engine.team import dispatch
from tiny_models import tiny_llama
from tiny_reward_models import tiny_classifier

pytestmark = pytest.mark.slow
DECODE = str(ROOT / "on_policy_data_gen" / "decode.py")


class Machines:
    """A head, and others that come and go; each has room for one worker."""

    def __init__(self):
        from ray.cluster_utils import Cluster as Nodes

        self.nodes, self.others = Nodes(), []
        self.nodes.add_node(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20)
        self.address = self.nodes.address

    def join(self, wait: bool = True) -> None:
        self.others.append(self.nodes.add_node(wait=wait, num_cpus=1, object_store_memory=80 << 20))

    def kill(self) -> None:
        self.nodes.remove_node(self.others.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def machines():
    with pytest.MonkeyPatch.context() as patch:
        folders = [ROOT, ROOT / "scripts", ROOT / "on_policy_data_gen", ROOT / "tests"]  # for the test's own worker
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_health_check_period_ms", "300")  # the 5th miss is a loss; slow answers are none
        started = Machines()
        yield started
        started.nodes.shutdown()


@pytest.fixture
def two(machines):
    if not machines.others:
        machines.join()
    return machines


def team(machines: Machines, model: str = "hub/name", count: int = 2, gpus: int = 1) -> Cluster:
    return Cluster(machines.address, model, partial(Doubler, 8, 0.1), count, gpus)


def test_machines_that_are_lost_and_join(two, capsys):
    done = []
    for result in dispatch(team(two), [[n, n + 1] for n in range(100, 220, 2)], 60):
        done.append((result.item, result.value))
        if len(done) == 30:
            two.kill()
        if len(done) == 60:
            two.join(wait=False)
    assert sorted(done) == [(n, 2 * n) for n in range(100, 220)]
    assert "is lost" in capsys.readouterr().err


def test_machines_that_differ(two, monkeypatch):
    here = cluster.facts
    monkeypatch.setattr(cluster, "facts", lambda *of: here(*of) | {"simpo": "0.1"})
    with pytest.raises(UserError, match=r"^machine .*: simpo is .* there and 0.1 where the command runs"):
        team(two)


def test_what_must_be_the_same(monkeypatch):
    make = partial(Doubler)
    here = cluster.facts(make, "hub/name")
    monkeypatch.setattr(cluster, "facts", lambda *of: here)
    cluster.check(make, here)
    assert here.keys() > {"Python", "ray", "vllm", "torch", "transformers", "simpo"}
    for name in here.keys() - {"model"}:
        with pytest.raises(UserError, match=re.escape(f"{name} is {here[name]} there and 0.1 where the command runs")):
            cluster.check(make, here | {name: "0.1"})


def test_a_model_that_a_machine_lacks(two, tmp_path):
    with pytest.raises(UserError, match=r"^machine .*: model: there is no folder"):
        team(two, str(tmp_path / "nowhere"))


def test_a_machine_that_joins_late_without_the_model(machines, tmp_path, capsys):
    while machines.others:
        machines.kill()
    llama = Path(tiny_llama(tmp_path / "llama"))
    done, said = [], ""

    def until_said() -> Iterator[list[int]]:
        for n in range(100, 3000):
            if "go on without it" not in said:
                yield [n]

    for result in dispatch(team(machines, str(llama)), until_said(), 8):
        done.append(result.value)
        said += capsys.readouterr().err
        if len(done) == 4:
            llama.rename(tmp_path / "elsewhere")
            machines.join(wait=False)
    assert f"model: there is no folder {llama}" in said and "the others go on without it" in said
    assert sorted(done) == [2 * n for n in range(100, 100 + len(done))]


def test_no_cluster(two, monkeypatch):
    monkeypatch.setattr(cluster, "HEALTHY", 3)
    with pytest.raises(UserError, match="is not HOST:PORT"):
        cluster.connect("nowhere")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"no Ray cluster .* at 127.0.0.1:{port}"):
            cluster.connect(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"at 127.0.0.1:{port} .*refused.*ray start --head"):
        cluster.connect(f"127.0.0.1:{port}")


def test_room(capsys):
    nodes = [{"Resources": {"GPU": 2.0}}, {"Resources": {"GPU": 4.0}}, {"Resources": {"CPU": 64.0}}]
    with pytest.raises(
        UserError, match=r"needs 8 GPUs of one machine, and the cluster has 3 machines with 0, 2, 4 GPUs"
    ):
        check_room(nodes, "GPU", 8, 1)
    check_room(nodes, "GPU", 2, 3)
    assert not capsys.readouterr().err
    check_room(nodes, "GPU", 2, 4)
    assert "room for 3 of 4 engines" in capsys.readouterr().err


def test_scores_over_machines_are_those_of_one_process(two, monkeypatch, tmp_path):
    candidates = write_candidates(tmp_path / "in.json", 40)
    argv = ["annotate.py", "--generation_file", str(candidates), "--torch_dtype", "float32", "--batch_tokens", "1000"]
    argv[0] = str(ROOT / "on_policy_data_gen" / "reward_model_annotate.py")
    argv += ["--reward_model", tiny_classifier(tmp_path / "rm"), "--output_dir"]
    spread = ["--data_parallel_size", "2"]
    for name, more in {"one": [], "processes": spread, "cluster": [*spread, "--ray_address", two.address]}.items():
        monkeypatch.setattr(sys, "argv", [*argv, str(tmp_path / name), *more])
        reward_model_annotate.main()
    files = {name: (tmp_path / name / "all_outputs_bin.json").read_bytes() for name in ("one", "processes", "cluster")}
    assert files["one"] == files["processes"] == files["cluster"]


def test_decoding_survives_machines_and_the_driver(two, tmp_path):
    """A machine is killed in the middle, then the driver. The same command goes on; another machine joins late.

    The files are those of one process.
    """
    llama = tiny_llama(tmp_path / "llama")
    data = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"What is {i} plus {i % 7}?"} for i in range(60)])
    argv = [DECODE, "--model", llama, "--data_dir", str(data), "--seed", "1", "2", "--max_num_seqs", "4"]
    argv += ["--max_model_len", "512", "--max_tokens", "200", "--dtype", "float32", "--output_dir"]
    out, journals = tmp_path / "out", tmp_path / "out" / "journal"
    over = [*argv, str(out), "--data_parallel_size", "2", "--ray_address", two.address]

    def answered() -> int:
        return sum(path.read_bytes().count(b"\n") for path in journals.glob("*.jsonl"))

    driver = Started(over, errors=tmp_path / "first").process
    for said, then in (("", two.kill), ("is lost", driver.kill)):
        end, before = time.monotonic() + 600, answered()
        while driver.is_alive() and (answered() < before + 30 or said not in (tmp_path / "first").read_text()):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert driver.is_alive(), (tmp_path / "first").read_text()
        then()
    driver.join()
    kept = answered()
    again = Started(over, errors=tmp_path / "again")
    while answered() < kept + 5 and again.process.is_alive():
        time.sleep(0.05)
    two.join(wait=False)
    again.finish()
    Started([*argv, str(tmp_path / "one")]).finish()
    for name in ("output_1.json", "output_2.json"):
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
        assert len(json.loads((out / name).read_bytes())) == 60
    assert not list(journals.iterdir())
