"""Prints docs/performance.md's table of memory on GPUs, which need not be there.

JAX_PLATFORMS=cpu python -m tests.cuda.print_memory
"""

from tests.cuda.gpu_programs import coco_config, compile_program, gpu_mesh, lower_training
from tests.cuda.test_official_step import IMAGES_PER_DEVICE

XLA = {"model__attention": "xla"}
UNROLLED = {"model__scan_blocks": False}
FSDP = {"mesh__fsdp": 8}
ROWS = [
    *[("h100", 1, changes) for changes in ({}, XLA, UNROLLED, UNROLLED | XLA)],
    ("h100", 1, {"model__remat": True}),
    *[("h100", 8, changes) for changes in ({}, XLA, FSDP, FSDP | XLA)],
    *[("a100-80", 1, changes) for changes in ({}, XLA)],
]


def describe(card: str, devices: int, changes: dict) -> str:
    """A row of the table."""
    config, clip = coco_config(IMAGES_PER_DEVICE * devices, **changes)
    mesh = gpu_mesh(card, devices, fsdp=config.mesh.fsdp)
    program = compile_program(lower_training(config, clip, mesh))
    settings = " ".join(
        f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items()
    )
    exchanged = sum(program.collective_bytes.values())
    return (
        f"| {devices} {card.upper()} | {f'`{settings}`' if settings else 'as it is'} "
        f"| {program.peak_bytes / 1e9:.2f} | {exchanged / 1e9:.2f} |"
    )


if __name__ == "__main__":
    print("| | setting | GB at the peak | GB exchanged |\n|---|---|---|---|")
    for row in ROWS:
        print(describe(*row), flush=True)
