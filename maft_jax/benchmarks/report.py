"""The results of a benchmark, for people."""

from collections.abc import Mapping

from input_pipeline.benchmark import describe as describe_pipeline

_PARTS = ("step", "evaluation", "input", "precompute", "encoders")


def describe(results: Mapping) -> str:
    """A paragraph for the machine and one for each part that was measured."""
    sections = [describe_provenance(results["provenance"])]
    sections += [describe_part(part, part, results[part]) for part in _PARTS if part in results]
    return "\n\n".join(sections)


def describe_part(title: str, measured: str, found: Mapping) -> str:
    """A paragraph; `measured` says what kind of numbers these are."""
    writers = {
        "step": _step,
        "evaluation": _evaluation,
        "input": _input,
        "precompute": _precompute,
        "training": _training,
        "encoders": _encoders,
    }
    return "\n".join([title, *(f"  {line}".rstrip() for line in writers[measured](found))])


def describe_suite_part(results: Mapping, name: str) -> str:
    """What the newest part of a suite has found, or why it has not."""
    if name in results["failed"]:
        return f"{name}\n  failed: {results['failed'][name]}"
    part = results["parts"][name]
    return describe_part(name, part["measured"], part[part["measured"]])


def describe_suite_end(results: Mapping) -> str:
    """What was left out, and how long it took."""
    left_out = "".join(f"\n  no time for: {name}" for name in results["left_out"])
    failures = "".join(f"\n  failed: {name}" for name in results["failed"])
    return (
        f"{len(results['parts'])} parts measured in {results.get('seconds', 0.0):.0f} s of "
        f"{60 * results['minutes']:.0f} s{failures}{left_out}"
    )


def describe_provenance(found: Mapping) -> str:
    """The machine and the versions."""
    device, host, versions = found["device"], found["host"], found["versions"]
    return (
        f"{device['count']} x {device['kind']} ({device['platform']}), {device['processes']} "
        f"process(es); {host['processor']}, {host['cores']} cores; jax {versions['jax']}, commit "
        f"{versions['git_revision']}"
    )


def _step(step: Mapping) -> list[str]:
    blocked, pipelined = step["blocked"], step["pipelined"]
    compiled = step["memory"]["compiled_bytes_per_device"]
    lines = [
        f"{step['weights']}; data: {step['data']}",
        f"batch {step['batch_size']}, {step['num_proposals']} proposals, "
        f"{step['image_size']} pixels, masks from layer {step['mask_start_layer']}, "
        f"{step['compute_dtype']}, mesh {_mesh(step['mesh'])}",
        f"compiled in          {step['compile_seconds']:.1f} s",
        *_blocked("step", blocked),
        f"pipelined            {_seconds(pipelined['seconds_per_step'])}, "
        f"{pipelined['images_per_second']:.2f} images/s over {pipelined['steps']} steps",
        *_arithmetic(step["arithmetic"]),
        f"memory, compiled     {_size(compiled['total'])} per device, "
        f"{_size(compiled['temp'])} of it temporary",
        *_peaks(step["memory"]),
    ]
    if "torch" in step:
        lines += _torch(step["torch"])
        lines.append(f"losses differ by     {step['torch']['loss_difference']:.1e}")
    return lines


def _encoders(found: Mapping) -> list[str]:
    lines = [
        f"random weights, batch {found['batch_size']}, {found['image_size']} pixels, "
        f"{found['compute_dtype']}, in turns"
    ]
    for count, towers in found["num_proposals"].items():
        lines += [
            f"{count:>5} proposals      {tower:<25} p50 {_seconds(times['p50_seconds'])}, "
            f"{times['times_ip_clip']:.3f} of IP-CLIP's"
            for tower, times in towers.items()
        ]
    return lines


def _evaluation(found: Mapping) -> list[str]:
    lines = [
        f"{found['weights']}; data: {found['data']}",
        f"{found['image_size']} pixels, masks from layer {found['mask_start_layer']}, "
        f"{found['compute_dtype']}, mesh {_mesh(found['mesh'])}",
        f"first run            {found['first_run_seconds']:.1f} s, compilation included",
    ]
    if "whole" in found:
        whole = found["whole"]
        lines.append(
            f"data sets            {whole['images_per_second']:.2f} images/s "
            f"({whole['images']} in {whole['seconds']:.1f} s, reading and counting included)"
        )
    else:
        pipelined = found["pipelined"]
        lines += [
            *_blocked("batch", found["blocked"]),
            f"pipelined            {_seconds(pipelined['seconds_per_batch'])}, "
            f"{pipelined['images_per_second']:.2f} images/s over {pipelined['batches']} batches "
            f"of {found['batch_size']}",
        ]
    lines += _peaks(found["memory"])
    if "torch" in found:
        lines += _torch(found["torch"])
        lines.append(f"labels that differ   {100 * found['torch']['labels_that_differ']:.3f} %")
    if "peak_bytes_alone" in found:
        peaks = found["peak_bytes_alone"]
        lines.append(
            f"a process alone      {_size(peaks['this'])}, PyTorch's {_size(peaks['torch'])}"
        )
    return lines


def _input(found: Mapping) -> list[str]:
    lines = [f"data: {found['data']}", *describe_pipeline(found).splitlines()]
    if "cores_for_the_step" in found:
        lines.append(f"{found['cores_for_the_step']:.2f} cores a host feed the step above")
    return lines


def _precompute(found: Mapping) -> list[str]:
    job = found["job"]
    return [
        f"{found['generator']}, at most {found['num_proposals']} proposals; data: {found['data']}",
        *_blocked("image", found["blocked"]),
        f"job                  {job['images_per_second']:.2f} images/s with {job['workers']} "
        f"worker(s) ({job['images']} in {job['seconds']:.1f} s, their start included)",
    ]


def _training(found: Mapping) -> list[str]:
    return [
        f"data: {found['data']}, read and augmented by {found['cores']} cores",
        f"{found['steps']} of {found['steps_asked_for']} steps of {found['batch_size']} images in "
        f"{found['seconds']:.1f} s, {found['images_per_second']:.2f} images/s",
        f"each step            p50 {_seconds(found['p50_seconds'])}, "
        f"p95 {_seconds(found['p95_seconds'])}",
        f"waited for input     {100 * found['share_waited_for_input']:.1f} % of the time",
    ]


def _blocked(unit: str, blocked: Mapping) -> list[str]:
    return [
        f"blocked, each {unit:7}p50 {_seconds(blocked['p50_seconds'])}, "
        f"p95 {_seconds(blocked['p95_seconds'])}, {blocked['images_per_second']:.2f} images/s "
        f"at p50 ({blocked['runs']} runs)"
    ]


def _arithmetic(found: Mapping) -> list[str]:
    if found["flops_per_image"] is None:
        return ["arithmetic           no formula for steps without distillation or with other "
                "trainable parameters than MAFT's"]  # fmt: skip
    flops = f"{found['flops_per_image'] / 1e9:,.2f} GFLOP an image by formula"
    if found["peak_flops_per_device"] is None:
        return [
            f"arithmetic           {flops}; MFU: unknown peak of this device and dtype "
            "(--peak_tflops)"
        ]
    return [
        f"arithmetic           {flops}; peak {found['peak_flops_per_device'] / 1e12:g} TFLOP/s "
        "per device",
        f"MFU                  {100 * found['mfu_pipelined']:.1f} % pipelined, "
        f"{100 * found['mfu_blocked']:.1f} % blocked",
    ]


def _peaks(memory: Mapping) -> list[str]:
    lines = []
    if memory["device_peak_bytes"] is not None:
        lines.append(f"memory, device peak  {_size(memory['device_peak_bytes'])}")
    lines.append(f"memory, process peak {_size(memory['process_peak_bytes'])}")
    return lines


def _torch(found: Mapping) -> list[str]:
    threads = f", {found['threads']} threads" if found["threads"] else ""
    lines = [
        f"PyTorch              p50 {_seconds(found['blocked']['p50_seconds'])}, "
        f"p95 {_seconds(found['blocked']['p95_seconds'])}, "
        f"{found['blocked']['images_per_second']:.2f} images/s",
        f"PyTorch / this       {found['ratio']:.2f} (median of neighbours, taking turns)",
        f"PyTorch is           {found['version']} on {found['device']}{threads}, "
        f"{found['precision']}, attention by {found['attention']}",
    ]
    if found["device_peak_bytes"] is not None:
        lines.append(f"PyTorch, device peak {_size(found['device_peak_bytes'])}")
    return lines


def _mesh(mesh: Mapping[str, int]) -> str:
    return " x ".join(f"{name} {size}" for name, size in mesh.items())


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def _size(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"
