"""What WandbRun uses of wandb, with the signatures of 0.31, kept in memory as its server would."""

import os

runs = {}
"""Rows, settings and the calls that are looked at, by the run's id."""


class Settings:
    def __init__(self, *, console, init_timeout, finish_timeout):
        assert console == "off" and os.environ["WANDB_SILENT"] == "true"
        assert init_timeout and finish_timeout


class _Config(dict):
    def update(self, settings, allow_val_change=False):
        assert allow_val_change or not set(settings) & set(self)
        super().update(settings)


class _Run:
    def __init__(self, project, name):
        self.rows, self.config, self.axes, self.exit_codes = [], _Config(), {}, []
        self.project, self.name = project, name

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, data, *, step, commit):
        assert commit
        if not self.rows or step > self.rows[-1][0]:  # what comes later is dropped
            self.rows.append((step, data))

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)


def init(*, project, name, id, resume, dir, reinit, settings):
    assert resume == "allow" and reinit == "create_new" and isinstance(settings, Settings)
    return runs.setdefault(id, _Run(project, name))
