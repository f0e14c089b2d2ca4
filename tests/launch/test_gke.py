"""Manifests as YAML reads them, against Google's and JobSet's own examples; kubectl is a fake."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import yaml

from launch.manifests import to_yaml
from tests.launch.fake_cloud import REPOSITORY

TRAINING = ["--config=configs/coco.py", "--workdir=gs://b/r", "--config.note=it's: $HOME"]
FLAGS = ["--name=maft", "--topology=v5e:4x4", "--image=repo/maft:1"]

KUBECTL = f"""\
#!{sys.executable} -SE
import json, os, sys
given = sys.stdin.read()
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps({{"argv": sys.argv[1:], "stdin": given}}) + "\\n")
if os.environ.get("FAIL"):
    sys.exit("The connection to the server localhost:8080 was refused")
if sys.argv[1] == "create":
    path = sys.argv[-3].partition("=")[2]
    print("kind: Secret", open(path).read())
"""


@pytest.fixture
def gke(tmp_path):
    """Runs `python -m launch.gke`; its `calls` are kubectl's."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL)
    program.chmod(0o755)

    def run(*flags, arguments=TRAINING, **variables):
        return subprocess.run(
            [sys.executable, "-m", "launch.gke", *flags, "--", *arguments],
            cwd=tmp_path,
            env=os.environ
            | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
            | {"CALLS": str(tmp_path / "calls")}
            | variables,
            capture_output=True,
            text=True,
        )

    run.calls = lambda: calls_in(tmp_path / "calls")
    return run


def calls_in(path: pathlib.Path) -> list[dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def test_jobset_has_the_fields_of_googles_example(gke):
    assert gke(*FLAGS, "--num_slices=2").returncode == 0
    (call,) = gke.calls()
    assert call["argv"] == ["apply", "--filename=-"]
    jobset = yaml.safe_load(call["stdin"])
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert jobset["metadata"] == {"name": "maft", "annotations": exclusive}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    job = replicated["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["image"] == "repo/maft:1" and container["args"] == TRAINING
    assert pod["restartPolicy"] == "Never"


def test_refused_input_ends_the_jobset_and_all_else_restarts_it(gke):
    gke(*FLAGS, "--max_restarts=7")
    spec = yaml.safe_load(gke.calls()[0]["stdin"])["spec"]
    assert spec["failurePolicy"] == {
        "maxRestarts": 7,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = {"containerName": "train", "operator": "In", "values": [2]}
    assert rule == {"action": "FailJob", "onPodConditions": [], "onExitCodes": codes}
    assert job["template"]["spec"]["containers"][0]["name"] == "train"


def test_spot_ironwood_mounts_and_service_account(gke):
    flags = ["--spot", "--service_account=maft", "--mount=my_bucket"]
    gke("--name=maft", "--topology=tpu7x:4x4x4", "--image=i", *flags)
    job = yaml.safe_load(gke.calls()[0]["stdin"])["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == 16
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu7x"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["serviceAccountName"] == "maft"
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (volume,) = pod["volumes"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "my_bucket"
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], "/gcs/my_bucket")


def test_secrets_go_through_pipes_alone(gke, tmp_path):
    file = tmp_path / "tokens.env"
    file.write_text("TOKEN=s3cret\n")
    file.chmod(0o600)
    done = gke(*FLAGS, "--env_file=tokens.env")
    assert done.returncode == 0, done.stderr
    create, apply_secret, apply_jobset = gke.calls()
    assert create["argv"][:4] == ["create", "secret", "generic", "maft-env"]
    assert "s3cret" in apply_secret["stdin"]
    assert "s3cret" not in apply_jobset["stdin"] + done.stdout + done.stderr
    assert not [call for call in gke.calls() if "s3cret" in " ".join(call["argv"])]
    pod = yaml.safe_load(apply_jobset["stdin"])["spec"]["replicatedJobs"][0]["template"]["spec"][
        "template"
    ]["spec"]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "maft-env"}}]


def test_dry_run_prints_command_and_manifest_and_calls_nothing(gke):
    printed = gke(*FLAGS, "--dry-run")
    assert printed.returncode == 0 and gke.calls() == []
    command, comment, manifest = printed.stdout.split("\n", 2)
    assert command == "kubectl apply --filename=-" and comment.startswith("#")
    gke(*FLAGS)
    assert manifest == gke.calls()[0]["stdin"]


def test_xpk_command_asks_for_the_same(gke):
    printed = gke(*FLAGS, "--num_slices=2", "--xpk=my-cluster")
    assert printed.stdout.startswith("xpk workload create --cluster=my-cluster --workload=maft ")
    assert "--tpu-type=v5litepod-16 --num-slices=2 --docker-image=repo/maft:1" in printed.stdout
    assert gke.calls() == []


def test_kubectl_that_fails_is_explained(gke):
    done = gke(*FLAGS, FAIL="1")
    assert done.returncode == 1
    assert "was refused" in done.stderr and "get-credentials" in done.stderr


@pytest.mark.parametrize(
    ("flags", "arguments", "message"),
    [
        (["--name=Maft"], TRAINING, "--name=Maft: expected"),
        (["--topology=v5e:4"], TRAINING, "expected 2 sizes"),
        (["--num_slices=0"], TRAINING, "--num_slices=0: expected 1 or more"),
        (["--xpk=c", "--mount=b"], TRAINING, "--xpk: expected no --env_file"),
        ([], ["--config=c"], "--workdir=... among them"),
        ([], ["--config=c", "--workdir=runs/x"], "expected gs://BUCKET/FOLDER"),
    ],
)
def test_wrong_flags_are_refused(gke, flags, arguments, message):
    done = gke(*FLAGS, *flags, arguments=arguments)
    assert done.returncode == 2 and message in done.stderr
    assert gke.calls() == []


@pytest.mark.parametrize(
    "value",
    [
        {
            "a": 1,
            "b": "x: y # z",
            "c": [1, {"d": [], "e": {}}, [2, 3]],
            "f": {"g": None, "h": True},
        },
        [{"a": {"b": {"c": "é\n'\""}}}, "on", "1e3"],
    ],
)
def test_yaml_reads_what_was_written(value):
    assert yaml.safe_load(to_yaml(value)) == value
