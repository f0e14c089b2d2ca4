"""What gcloud's error messages mean, and what to do about them."""

import dataclasses
import enum
import re

from launch.commands import Target
from launch.runner import LaunchError


class Kind(enum.Enum):
    """Of an error; decides whether trying again can help."""

    QUOTA = "quota"
    CAPACITY = "capacity"
    NOT_FOUND = "not found"
    EXISTS = "exists"
    TRANSIENT = "transient"
    OTHER = "other"


@dataclasses.dataclass(frozen=True)
class _Rule:
    pattern: str
    kind: Kind
    advice: str


# The first that matches. {0}, {1} are groups of the pattern.
_RULES = [
    _Rule(
        r"[Qq]uota (?:limit |metric )?'?([\w.\-/]+)'?.*?(?:exceed|exhaust)",
        Kind.QUOTA,
        "The quota {0} of the project does not suffice. See and raise it on "
        "https://console.cloud.google.com/iam-admin/quotas?service=tpu.googleapis.com{query} "
        "(spot and flex_start count as preemptible). Queued resources that are SUSPENDED or FAILED "
        "still use quota; list and delete them: gcloud compute tpus queued-resources list {flags}",
    ),
    _Rule(
        r"RESOURCE_EXHAUSTED.*[Qq]uota|[Qq]uota.*RESOURCE_EXHAUSTED",
        Kind.QUOTA,
        "A quota of the project does not suffice: "
        "https://console.cloud.google.com/iam-admin/quotas?service=tpu.googleapis.com{query}",
    ),
    _Rule(
        r"no (?:more )?capacity|[Ii]nsufficient (?:reserved )?capacity|stockout|"
        r"not enough (?:resources|capacity)",
        Kind.CAPACITY,
        "The zone has no such chips left at the moment. Another zone or another --capacity may; "
        "with --capacity=reserved check the reservation",
    ),
    _Rule(
        r"active account|[Rr]eauthentication|gcloud auth login|UNAUTHENTICATED|invalid_grant",
        Kind.OTHER,
        "Sign in: gcloud auth login",
    ),
    _Rule(
        r"required property \[(?:core/)?project\]|attribute \[project\]|\[project\] .*required",
        Kind.OTHER,
        "Say which project: --project=PROJECT, or gcloud config set project PROJECT",
    ),
    _Rule(
        r"SERVICE_DISABLED|has not been used in project|API .*not enabled",
        Kind.OTHER,
        "Switch the API on: gcloud services enable tpu.googleapis.com{project}",
    ),
    _Rule(
        r"PERMISSION_DENIED|[Pp]ermission .*denied|does not have permission|Access Not Configured",
        Kind.OTHER,
        "Your account needs the roles TPU Admin and Service Account User in this project "
        "(docs/tpu.md, step 1), and a zone that it may use: gcloud compute tpus locations list",
    ),
    _Rule(r"ALREADY_EXISTS|already exists", Kind.EXISTS, "Choose another --name, or delete it"),
    _Rule(
        r"ccelerator ?[Tt]ype.*(?:not found|not support|invalid|unknown)|"
        r"(?:does not|not) support.*accelerator|untime version.*(?:not found|invalid)",
        Kind.OTHER,
        "See what the zone has: gcloud compute tpus tpu-vm accelerator-types list {flags}; "
        "gcloud compute tpus tpu-vm versions list {flags}",
    ),
    _Rule(
        r"Location .*not found|[Ii]nvalid.*(?:zone|location)|(?:zone|location).*[Ii]nvalid",
        Kind.OTHER,
        "See the zones with TPUs: gcloud compute tpus locations list",
    ),
    _Rule(r"NOT_FOUND|was not found|not found", Kind.NOT_FOUND, "Check --name and --zone"),
    _Rule(
        r"UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED|\b50[0234]\b|[Cc]onnection|"
        r"[Tt]imed? ?out|no answer within|[Nn]etwork is unreachable|name resolution",
        Kind.TRANSIENT,
        "Probably passing: try again",
    ),
]


class GcloudError(LaunchError):
    """A gcloud command failed; the message has gcloud's own words and advice."""

    def __init__(self, what: str, text: str, target: Target):
        text = text.strip()
        self.kind, advice = explain(text, target)
        shown = "\n".join(text.splitlines()[-12:]) or "it said nothing"
        super().__init__(f"{what} failed:\n{shown}" + (f"\n\n{advice}." if advice else ""))


def explain(text: str, target: Target) -> tuple[Kind, str]:
    """Kind of an error message of gcloud, and advice, which may be empty."""
    project = "" if target.project is None else f" --project={target.project}"
    query = "" if target.project is None else f"&project={target.project}"
    for rule in _RULES:
        match = re.search(rule.pattern, text, re.DOTALL)
        if match:
            flags = f"--zone={target.zone}{project}"
            return rule.kind, rule.advice.format(
                *match.groups(), flags=flags, project=project, query=query
            )
    return Kind.OTHER, ""
