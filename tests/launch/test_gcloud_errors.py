"""Messages that Google's users have reported, and what is made of them."""

import pytest

from launch.commands import Target
from launch.gcloud_errors import Kind, explain

TARGET = Target("maft", "us-east5-b", "mine")


@pytest.mark.parametrize(
    ("message", "kind", "advice"),
    [
        (
            "Quota limit 'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI' has been exceeded. "
            "Limit: 0 in region us-east5.",
            Kind.QUOTA,
            "TPUV6EPreemptiblePerProjectPerRegionForTPUAPI",
        ),
        (
            "Quota 'TPUV4sPreemptiblePodPerProjectPerRegionForTPUAPI' exhausted. Limit 20800 in "
            "region us-central2",
            Kind.QUOTA,
            "queued-resources list --zone=us-east5-b --project=mine",
        ),
        (
            "Insufficient reserved capacity. Contact customer support.",
            Kind.CAPACITY,
            "Another zone",
        ),
        ('There is no more capacity in the zone "us-east5-b"', Kind.CAPACITY, "Another zone"),
        (
            "PERMISSION_DENIED: Cloud TPU API has not been used in project 123 before or it is "
            "disabled.",
            Kind.OTHER,
            "gcloud services enable tpu.googleapis.com --project=mine",
        ),
        ("PERMISSION_DENIED: Permission denied on 'locations/us-x1-a'", Kind.OTHER, "TPU Admin"),
        (
            "You do not currently have an active account selected.\nPlease run:",
            Kind.OTHER,
            "gcloud auth login",
        ),
        (
            "Error parsing [queued_resource].\nThe [queued_resource] resource is not properly "
            "specified.\nFailed to find attribute [project]. The attribute can be set ...",
            Kind.OTHER,
            "--project=PROJECT",
        ),
        (
            "The required property [project] is not currently set.",
            Kind.OTHER,
            "gcloud config set project",
        ),
        (
            "INVALID_ARGUMENT: Accelerator type v6e-3 not found in zone",
            Kind.OTHER,
            "accelerator-types list --zone=us-east5-b",
        ),
        ("ALREADY_EXISTS: Resource already exists", Kind.EXISTS, "--name"),
        ("NOT_FOUND: Resource 'projects/x' was not found", Kind.NOT_FOUND, "--zone"),
        ("The service is currently UNAVAILABLE", Kind.TRANSIENT, "try again"),
        ("HttpError accessing <https://...>: response: <{'status': '503'}>", Kind.TRANSIENT, "try"),
        ("something new", Kind.OTHER, ""),
    ],
)
def test_advice(message, kind, advice):
    found_kind, found_advice = explain(f"ERROR: (gcloud.compute.tpus) {message}", TARGET)
    assert found_kind is kind
    assert advice in found_advice
    assert "{" not in found_advice
