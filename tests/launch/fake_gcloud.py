"""Stands in for gcloud on PATH: replays a scenario, and its machines are folders on this one.

$FAKE_CLOUD/scenario.json says what happens, calls.jsonl has what was asked. `tpu-vm ssh` runs the
command for real, once per worker, with that worker's folder as its home.
"""

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
SCENARIO = json.loads((CLOUD / "scenario.json").read_text())


def memory(change=None) -> dict:
    """What lasts between calls: number of creations, of answers since the last, of ssh failures."""
    with (CLOUD / "memory.json").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        content = json.load(file)
        if change is not None:
            change(content)
            file.seek(0)
            file.truncate()
            json.dump(content, file)
    return content


def fail(message: str, code: int = 1):
    print(message, file=sys.stderr)
    sys.exit(code)


def of_creation(name: str, created: int):
    """The scenario's entry for this creation; the last one is for all later ones."""
    entries = SCENARIO[name]
    return entries[min(created, len(entries)) - 1]


def create(argv):
    def count(content):
        content["creations"] += 1
        content["answers"] = 0
        content["exists"] = True

    asked = memory()["creations"] + 1
    error = of_creation("create_errors", asked)
    if error:
        memory(lambda content: content.update(creations=asked))
        fail(f"ERROR: (gcloud.compute.tpus.queued-resources.create) {error}")
    memory(count)


def describe(argv):
    content = memory(lambda content: content.update(answers=content["answers"] + 1))
    if not content["exists"]:
        fail("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource not found")
    states = of_creation("states", content["creations"])
    state = states[min(content["answers"], len(states)) - 1]
    state, _, error = state.partition(":")
    specs = [{"nodeId": node} for node in SCENARIO["nodes"]]
    data = {"failedData": {"error": {"message": error}}} if error else {}
    print(json.dumps({"state": {"state": state, **data}, "tpu": {"nodeSpec": specs}}))


def delete(argv):
    if not memory()["exists"]:
        fail("ERROR: (gcloud.compute.tpus.queued-resources.delete) NOT_FOUND: Resource not found")
    trouble = SCENARIO["deleting"]
    if trouble == "hangs":
        (CLOUD / "deleting").write_text("")
        time.sleep(60)
    elif trouble == "is said to be done":
        return
    elif trouble:
        fail(f"ERROR: (gcloud.compute.tpus.queued-resources.delete) {trouble}")
    memory(lambda content: content.update(exists=False))
    for home in (CLOUD / "vm").glob("*"):  # with its disk
        supervisor = home / "maft_jax_run/job/supervisor"
        if supervisor.exists():
            subprocess.run(["kill", "-KILL", "--", f"-{supervisor.read_text().strip()}"])
        shutil.rmtree(home)


def describe_node(argv):
    endpoints = [{"ipAddress": f"10.0.0.{i}"} for i in range(SCENARIO["num_workers"])]
    print(json.dumps({"state": "READY", "networkEndpoints": endpoints}))


def workers(argv) -> list[int]:
    (chosen,) = [a.partition("=")[2] for a in argv if a.startswith("--worker=")]
    return list(range(SCENARIO["num_workers"])) if chosen == "all" else [int(chosen)]


def home_of(node: str, worker: int) -> pathlib.Path:
    home = CLOUD / "vm" / f"{node}-w-{worker}"
    home.mkdir(parents=True, exist_ok=True)
    return home


def is_unreachable(worker: int) -> bool:
    """Counts down the failures that the scenario has for this worker since the last creation."""
    content = memory()
    left = of_creation("ssh_failures", content["creations"]).get(str(worker), 0)
    key = f"failures {content['creations']} {worker}"
    if content.get(key, 0) >= left:
        return False
    memory(lambda content: content.update({key: content.get(key, 0) + 1}))
    return True


def on_workers(argv, act):
    node = next(a for a in argv[4:] if not a.startswith("-")).partition(":")[0]
    worst = 0
    for worker in workers(argv):
        code = 255 if is_unreachable(worker) else act(node, worker)
        if code:
            print(
                f"##### Command execution on worker {worker} failed with exit status {code}. "
                "Continuing.",
                file=sys.stderr,
            )
            worst = code
    sys.exit(worst)


def ssh(argv):
    (command,) = [a.partition("=")[2] for a in argv if a.startswith("--command=")]
    creation = memory()["creations"]

    def act(node, worker):
        home = home_of(node, worker)
        environment = os.environ | {
            "HOME": str(home),
            "PATH": f"{CLOUD / 'vm_bin'}:{os.environ['PATH']}",
            "FAKE_HOST": f"{node}-w-{worker}",
            "FAKE_CREATION": str(creation),
        }
        return subprocess.run(["bash", "-c", command], cwd=home, env=environment).returncode

    on_workers(argv, act)


def scp(argv):
    source, destination = argv[4:6]
    node, _, path = destination.partition(":")

    def act(_, worker):
        shutil.copy(source, home_of(node, worker) / path)  # with its mode, as scp does
        return 0

    on_workers([*argv[:4], destination, *argv[6:]], act)


def storage(argv):
    """On the machines: gcloud storage cp --recursive --no-clobber gs://... FOLDER."""
    pathlib.Path(argv[-1], argv[-2].rpartition("/")[2]).write_text("fetched")


def main():
    argv = sys.argv[1:]
    with (CLOUD / "calls.jsonl").open("a") as file:
        call = {"argv": argv, "stdin": sys.stdin.read()}
        file.write(json.dumps(call) + "\n")
    if argv[0] == "alpha":
        argv = argv[1:]
    if argv[0] == "storage":
        return storage(argv)
    handlers = {
        "queued-resources": {"create": create, "describe": describe, "delete": delete},
        "tpu-vm": {"describe": describe_node, "ssh": ssh, "scp": scp},
    }
    handlers[argv[2]][argv[3]](argv)


main()
