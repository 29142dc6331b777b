"""Every command and Python block of the README runs as written, but for the port, the time and the networks' size."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from iog_export.networks import IOG, NetworkSpec, randomize

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, re.M | re.S)
COMMANDS = [line.split("  #")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
SERVE = next(command for command in COMMANDS if command.startswith("iog serve"))
WITH_CLICK = re.findall(r"with_click\((\d+), (\d+), positive=(True|False)\)", README)
SHORTER = {
    "--minutes 120": "--minutes 0.2 --size 128",
    "--backbone resnet50": "--backbone resnet18",
    "--size 512": "--size 128",
}
PHOTOGRAPH = ROOT / "export" / "iog_export" / "photographs" / "astronaut.jpg"
MASK = ROOT / "examples" / "references" / "astronaut.png"
RUN_AS_WRITTEN = [c for c in COMMANDS if c not in (SERVE, "make test")]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> str:
    return free_port()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new user's working directory: their photograph, their checkpoint."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copy(PHOTOGRAPH, path)
    network = IOG(NetworkSpec("resnet18"))
    randomize(network, 1)
    torch.save(network.state_dict(), path / "IOG.pth")
    (path / "examples").symlink_to(ROOT / "examples")
    for each in ("images", "masks"):
        (path / "photos" / "cups" / each).mkdir(parents=True)
    for name, split in (("astronaut", "train"), ("coffee", "val")):
        shutil.copy(PHOTOGRAPH.with_stem(name), path / "photos" / "cups" / "images")
        mask = PIL.Image.open(MASK.with_stem(name)).point(lambda value: value // 255)  # one object, with id 1
        mask.save(path / "photos" / "cups" / "masks" / f"{name}.png")
        (path / "photos" / f"{split}.txt").write_text(f"cups/{name}\n")
    return path


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def server(port: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    command = SERVE.replace("50051", port).split()
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE) as p:
        assert p.stdout is not None
        for line in p.stdout:
            if port.encode() in line:
                break
        else:
            raise AssertionError("iog serve ended before it was ready")
        yield
        p.terminate()
        assert p.wait(30) == 0
        p.stdout.close()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("command", RUN_AS_WRITTEN)
def test_command_of_the_readme_runs(command: str, folder: Path, port: str, environment: dict[str, str]) -> None:
    for written, run in SHORTER.items():
        command = command.replace(written, run)
    where = ROOT if command.startswith("make") else folder
    done = subprocess.run(
        command.replace("50051", port), shell=True, cwd=where, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = re.search(r"-o (\S+)", command)
    if output:
        assert (folder / output[1]).stat().st_size > 100


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("code", [block for kind, block in BLOCKS if kind == "python"])
def test_python_of_the_readme_runs(code: str, folder: Path, port: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace("50051", port)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "hit" in done.stdout


def test_corrections_of_the_readme_correct(folder: Path, environment: dict[str, str]) -> None:
    reference = np.asarray(PIL.Image.open(MASK)) > 127
    commands = [c for c in COMMANDS if c.startswith("iog segment") and "--model" not in c]
    ious = []
    for command in commands:
        subprocess.run(command, shell=True, cwd=folder, env=environment, check=True, capture_output=True)
        mask = np.asarray(PIL.Image.open(folder / "mask.png")) > 127
        ious.append((mask & reference).sum() / (mask | reference).sum())
    assert ious[-1] > ious[0] + 0.01
    clicked = {c for command in commands for c in re.findall(r"--click (\S+)", command)}
    assert {f"{x},{y},{'fg' if kind == 'True' else 'bg'}" for x, y, kind in WITH_CLICK} <= clicked


def test_the_test_command_is_a_target_and_what_ci_runs() -> None:
    assert "make test" in COMMANDS
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    done = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True)
    assert "pytest" in done.stdout


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:|#)([^)]+)\)", README))
def test_link_of_the_readme_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
