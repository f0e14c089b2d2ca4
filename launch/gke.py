"""Trains on Google Kubernetes Engine, as a JobSet: any TPU, Ironwood too, one slice or several.

    python -m launch.gke --name=maft --topology=v6e:4x4 --num_slices=2 --spot \\
        --image=us-docker.pkg.dev/PROJECT/REPOSITORY/maft_jax --service_account=maft -- \\
        --config=configs/coco.py --workdir=gs://BUCKET/run1 ...

applies the manifest with kubectl to the cluster that kubectl is set to; --dry-run prints it, and
--xpk=CLUSTER prints the command of xpk that asks for the same. The image is launch/Dockerfile's;
JobSet is installed in the cluster, which has (or makes, in Autopilot) the nodes. A preempted or
lost machine restarts all of them, and the run resumes; what training refuses (exit code 2) ends
the JobSet. docs/tpu.md has the rest.

Exit codes: 0 handed over, 1 failed, 2 wrong input.
"""

import argparse
import re
import shlex
import sys

from launch import command_line
from launch.accelerators import Slice, parse_topology
from launch.dry_run import DryRunner
from launch.manifests import to_yaml
from launch.runner import LaunchError, Runner, SubprocessRunner, shell_line
from launch.secrets_file import check_secrets_file

_CONTAINER = "train"
_WRONG_INPUT = 2
_GRACE_SECONDS = 120
"""For the checkpoint after SIGTERM; spot machines give 30 s whatever this says."""


def make_jobset(
    options: argparse.Namespace, tpu_slice: Slice, arguments: list[str]
) -> dict[str, object]:
    """The manifest (jobset.x-k8s.io/v1alpha2)."""
    container = {
        "name": _CONTAINER,
        "image": options.image,
        "args": arguments,
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],  # libtpu's, MEGASCALE's
        "resources": {"limits": {"google.com/tpu": tpu_slice.num_chips // tpu_slice.num_hosts}},
    }
    if options.env_file is not None:
        container["envFrom"] = [{"secretRef": {"name": secret_name(options.name)}}]
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": tpu_slice.generation.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": tpu_slice.topology,
            **({"cloud.google.com/gke-spot": "true"} if options.spot else {}),
        },
        "containers": [container],
    }
    metadata = {}
    if options.service_account is not None:
        pod["serviceAccountName"] = options.service_account
    if options.mount:
        metadata["annotations"] = {"gke-gcsfuse/volumes": "true"}
        pod["volumes"] = [_volume(bucket) for bucket in options.mount]
        container["volumeMounts"] = [
            {"name": _volume_name(bucket), "mountPath": f"/gcs/{bucket}", "readOnly": True}
            for bucket in options.mount
        ]
    job = {
        "parallelism": tpu_slice.num_hosts,
        "completions": tpu_slice.num_hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one lost machine restarts all, which is the JobSet's business
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [],
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": [_WRONG_INPUT],
                    },
                }
            ]
        },
        "template": {"metadata": metadata, "spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": options.name,
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": options.max_restarts,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": options.num_slices, "template": {"spec": job}}
            ],
        },
    }


def make_xpk_command(
    options: argparse.Namespace, tpu_slice: Slice, arguments: list[str]
) -> list[str]:
    """`xpk workload create` for the same training; xpk makes a manifest of its own."""
    training = shlex.join(["python", "-m", "maft_jax.main", *arguments])
    return [
        *["xpk", "workload", "create"],
        f"--cluster={options.xpk}",
        f"--workload={options.name}",
        f"--tpu-type={tpu_slice.accelerator_type}",
        f"--num-slices={options.num_slices}",
        f"--docker-image={options.image}",
        f"--max-restarts={options.max_restarts}",
        f"--command={training}",
    ]


def secret_name(name: str) -> str:
    """Of the Kubernetes secret with the variables of --env_file."""
    return f"{name}-env"


def launch(options: argparse.Namespace, arguments: list[str]) -> None:
    """Checks everything, then hands the manifest to kubectl."""
    command_line.check_training_arguments(arguments, shared="gs://")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
        raise ValueError(
            f"--name={options.name}: expected at most 40 lower-case letters, digits and hyphens, a "
            "letter first and no hyphen last"
        )
    if options.num_slices < 1:
        raise ValueError(f"--num_slices={options.num_slices}: expected 1 or more")
    tpu_slice = parse_topology(options.topology)
    if options.xpk is not None:
        if options.env_file is not None or options.mount or options.service_account:
            raise ValueError(
                "--xpk: expected no --env_file, --mount or --service_account, for which xpk has "
                "its own ways; leave --xpk out to use kubectl"
            )
        print(shell_line(make_xpk_command(options, tpu_slice, arguments)))
        return
    runner = DryRunner() if options.dry_run else SubprocessRunner()
    if options.env_file is not None:
        check_secrets_file(options.env_file)
        _apply_secret(runner, options.name, options.env_file)
    manifest = to_yaml(make_jobset(options, tpu_slice, arguments)) + "\n"
    _kubectl(runner, ["apply", "--filename=-"], manifest)
    if options.dry_run:
        print(f"# with this on its standard input:\n{manifest}", end="")
        return
    selector = f"jobset.sigs.k8s.io/jobset-name={options.name}"
    print(f"watch:   kubectl get jobset {options.name}; kubectl get pods --selector={selector}")
    print(f"output:  kubectl logs --follow --prefix --selector={selector}")
    print(f"delete:  kubectl delete jobset {options.name}   (nodes cost until they are gone)")


def _apply_secret(runner: Runner, name: str, env_file: str) -> None:
    """Through pipes: of the values, no command line has anything."""
    create = ["create", "secret", "generic", secret_name(name), f"--from-env-file={env_file}"]
    made = _kubectl(runner, [*create, "--dry-run=client", "--output=yaml"], "")
    _kubectl(runner, ["apply", "--filename=-"], made)


def _kubectl(runner: Runner, arguments: list[str], stdin: str) -> str:
    done = runner.run(["kubectl", *arguments], stdin=stdin)
    if done.exit_code:
        raise LaunchError(
            f"kubectl {arguments[0]} failed:\n{done.stderr.strip()}\n\nIs kubectl set to the "
            "cluster (gcloud container clusters get-credentials CLUSTER --location=...), and is "
            "JobSet installed there (docs/tpu.md)?"
        )
    return done.stdout


def _volume(bucket: str) -> dict[str, object]:
    return {
        "name": _volume_name(bucket),
        "csi": {
            "driver": "gcsfuse.csi.storage.gke.io",
            "readOnly": True,
            "volumeAttributes": {"bucketName": bucket, "mountOptions": "implicit-dirs"},
        },
    }


def _volume_name(bucket: str) -> str:
    return "gcs-" + re.sub("[^a-z0-9]", "-", bucket)[:50].strip("-")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(
        prog="python -m launch.gke",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--name", required=True, help="of the JobSet")
    add("--topology", required=True, help="of a slice: v5e:4x4, v6e:2x4, v5p:2x2x2, tpu7x:2x2x1")
    add("--num_slices", type=int, default=1, help="slices that train together; default 1")
    add("--image", required=True, help="container image, made by launch/Dockerfile")
    add("--spot", action="store_true", help="nodes that are cheaper and may be taken away")
    add("--max_restarts", type=int, default=50, help="of all machines together; default 50")
    add("--service_account", help="of Kubernetes, with access to the buckets (docs/tpu.md)")
    add(
        "--mount",
        action="append",
        default=[],
        metavar="BUCKET",
        help="bucket to mount, to read only, as /gcs/BUCKET: weights, data sets; repeatable",
    )
    add(
        "--env_file",
        help="file of NAME=value lines, such as tokens, that only you may read (chmod 600); "
        "becomes the Kubernetes secret NAME-env",
    )
    add("--xpk", metavar="CLUSTER", help="print the equivalent command of xpk, and do nothing")
    command_line.add_dry_run(made)
    return made


def main(argv: list[str]) -> int:
    """Launches, and returns the exit code."""
    return command_line.run(parser(), launch, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
