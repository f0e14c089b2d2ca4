"""The decisions of the state machine, with a clock and a runner that the test holds."""

import pytest

from launch.commands import Request, Target
from launch.dry_run import DryRunner
from launch.lifecycle import Lifecycle, Outcome, judge
from launch.queued_resources import QueuedResource, ResourceLost, parse_description
from launch.remote_job import WorkerState
from launch.runner import Completed, LaunchError, Progress

TARGET, REQUEST = Target("maft", "us-west4-a"), Request("v5litepod-8", capacity="spot")


class HeldClock:
    """Sleeping is all that takes time."""

    def __init__(self):
        self.time, self.slept = 0.0, []

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds


class ScriptedRunner(DryRunner):
    """A good day, but for the commands that `trouble` answers itself."""

    def __init__(self, trouble):
        super().__init__(TARGET, REQUEST)
        self.trouble = trouble

    def run(self, argv, *, stdin="", timeout=600):
        return self.trouble(argv) or super().run(argv, stdin=stdin, timeout=timeout)


def make_lifecycle(trouble, **settings):
    clock = HeldClock()
    resource = QueuedResource(TARGET, ScriptedRunner(trouble), clock, Progress(clock))
    return Lifecycle(resource, REQUEST, ["--config=c", "--workdir=gs://w"], **settings), clock


def state(code=None, word="exited", host="w-0"):
    return WorkerState(host, "job", word, code, "")


@pytest.mark.parametrize(
    ("codes", "outcome"),
    [
        ([0, 0], Outcome.DONE),
        ([2, 134], Outcome.WRONG_INPUT),
        ([134, 2], Outcome.WRONG_INPUT),
        ([1, 0], Outcome.FAILED),
        ([1, 134], Outcome.INTERRUPTED),  # a host died, and others may see it as an error
        ([143, 143], Outcome.INTERRUPTED),
        ([0, 139], Outcome.INTERRUPTED),
    ],
)
def test_exit_codes_of_all_workers_decide_together(codes, outcome):
    assert judge([state(code) for code in codes], len(codes)) is outcome


def test_stopped_by_the_user_is_no_interruption():
    assert judge([state(143, "stopped"), state(143, "stopped")], 2) is Outcome.STOPPED


@pytest.mark.parametrize("states", [[state(0)], [state(0), state(None, "lost")]])
def test_missing_and_restarted_machines_are_lost(states):
    with pytest.raises(ResourceLost, match="expected answers of 2 workers"):
        judge(states, 2)


def test_pauses_double_until_the_attempts_are_used_up():
    def full(argv):
        if "queued-resources" in argv and "describe" in argv:
            return Completed(0, '{"state": {"state": "SUSPENDED"}}')

    lifecycle, clock = make_lifecycle(full, max_attempts=8)
    with pytest.raises(LaunchError, match="gave up after 8 attempts"):
        lifecycle.up()
    assert clock.slept == [60, 120, 240, 480, 960, 1800, 1800]


@pytest.mark.slow
def test_machines_that_work_for_an_hour_may_be_taken_away_any_number_of_times():
    created, looked = [], []

    def preempt_every_hour(argv):
        if "create" in argv:
            created.append(argv)
            looked.clear()
        elif "delete" in argv:
            lifecycle.resource.runner._exists = False
        elif len(created) > 5:
            return None
        elif "queued-resources" in argv and looked:
            looked.append(argv)
            return Completed(0, '{"state": {"state": "SUSPENDED"}}') if len(looked) > 240 else None
        elif any("job.sh state" in argument for argument in argv):
            looked.append(argv)
            return Completed(0, "maft_jax host=w-0 job=x state=running code=- | step 7")
        return None

    lifecycle, _ = make_lifecycle(preempt_every_hour, max_attempts=2)
    lifecycle.up()
    assert len(created) == 6
    assert lifecycle.active_seconds == pytest.approx(5 * 60 * 60, rel=0.05)


def test_errors_that_pass_are_tried_again():
    tried = []

    def flaky(argv):
        if "create" in argv:
            tried.append(argv)
            if len(tried) < 4:
                return Completed(1, "", "ERROR: UNAVAILABLE: try later")

    lifecycle, _ = make_lifecycle(flaky)
    lifecycle.up()
    assert len(tried) == 4


def test_request_that_arrived_though_its_answer_did_not_is_taken_as_made():
    answers = iter([Completed(1, "", "UNAVAILABLE"), Completed(1, "", "ALREADY_EXISTS")])

    def lost_answer(argv):
        if "create" in argv:
            lifecycle.resource.runner._exists = True
            return next(answers)

    lifecycle, _ = make_lifecycle(lost_answer)
    lifecycle.up()
    assert next(answers, None) is None


def test_resource_of_other_chips_is_left_alone():
    def other(argv):
        assert "delete" not in argv
        if "queued-resources" in argv:
            spec = '[{"nodeId": "maft", "node": {"acceleratorType": "v5p-8"}}]'
            text = f'{{"state": {{"state": "ACTIVE"}}, "tpu": {{"nodeSpec": {spec}}}}}'
            return Completed(0, text)

    lifecycle, _ = make_lifecycle(other)
    with pytest.raises(LaunchError, match="is a v5p-8; expected v5litepod-8"):
        lifecycle.up()


def test_descriptions_of_google_are_read():
    one = parse_description(
        '{"name": "projects/p/locations/z/queuedResources/maft", "state": {"state": "ACTIVE"}, '
        '"tpu": {"nodeSpec": [{"node": {"acceleratorType": "v6e-8"}, "nodeId": "maft"}]}}',
        "maft",
    )
    assert (one.state, one.nodes, one.accelerator_type) == ("ACTIVE", ["maft"], "v6e-8")
    two = parse_description(
        '{"state": {"state": "FAILED", "failedData": {"error": {"message": "no"}}}, "tpu": '
        '{"nodeSpec": [{"multisliceParams": {"nodeCount": 2, "nodeIdPrefix": "maft"}}]}}',
        "maft",
    )
    assert (two.nodes, two.error) == (["maft-0", "maft-1"], "no")
    with pytest.raises(LaunchError, match="gcloud answered no JSON: 'Updates"):
        parse_description("Updates are available", "maft")
