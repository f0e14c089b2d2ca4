"""The page itself: gradio's components, and the server that shows them."""

import functools
import html
import importlib.resources
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from input_pipeline.sample_folder import SAMPLE_CLASSES
from maft_jax.inference.clip import Clip
from maft_jax.proposals.generator import ProposalGenerator
from maft_jax.runtime import stop_requests
from maft_jax.web_page.guard import RequestGuard, is_open_to_all
from maft_jax.web_page.session import PageSession, read_field
from maft_jax.web_page.viewer import viewer_data

MOST_PROPOSALS = 300
_PROPOSALS_STEP = 25
"""Each number of proposals compiles programs of its own."""
_FIRST_OPACITY = 0.6
_SHOW_OPACITY = (
    "(opacity) => {document.documentElement.style.setProperty('--maft-opacity', opacity)}"
)
_DOWNLOAD = """(file) => {
    const link = document.createElement("a");
    link.href = file.url;
    link.download = file.orig_name;
    link.click();
}"""
_HOUR = 3600
_MOST_TABS = 16
"""Browser tabs whose newest result stays in memory."""


logger = logging.getLogger(__name__)


def make_page(
    clip: Clip,
    weights_name: str,
    folder: str | os.PathLike,
    *,
    classes: str = "",
    background: str = "",
    num_proposals: int = 100,
    generator_of: Callable[[Sequence[str]], ProposalGenerator] | None = None,
) -> Any:
    """A gradio.Blocks, yet to be launched: `serve_page` does that.

    Args:
        weights_name: what the page calls the weights.
        folder: a new one for example pictures and downloads; the caller removes it.
        classes, background: what the fields hold at first; as `session.read_field` takes them.
        num_proposals: where its slider stands at first.
        generator_of: makes what makes the proposals, of all names; by default superpixels.

    Raises:
        ValueError: gradio is not installed, the weights have no text tower, or the names or
            `num_proposals` cannot be used.
    """
    gr = _gradio()
    if clip.config.text is None:
        raise ValueError(
            f"{weights_name}: these weights have no text tower, so names cannot be read; "
            "convert_weights --text_from gives them one"
        )
    for text, what in ((classes, "classes"), (background, "background")):
        read_field(text, what)
    if num_proposals not in range(_PROPOSALS_STEP, MOST_PROPOSALS + 1, _PROPOSALS_STEP):
        raise ValueError(
            f"num_proposals: expected a multiple of {_PROPOSALS_STEP} up to {MOST_PROPOSALS}, got "
            f"{num_proposals}"
        )
    session = PageSession(clip, folder, generator_of)
    with gr.Blocks(
        title="maft_jax", analytics_enabled=False, delete_cache=(_HOUR, 24 * _HOUR), fill_width=True
    ) as page:
        gr.Markdown(_headline(clip, weights_name))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                asked = _asking_side(gr, classes, background, num_proposals, session)
            with gr.Column(scale=3, min_width=400):
                shown = _showing_side(gr)
        _connect(gr, session, asked, shown)
    return page


def serve_page(
    page: Any,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
) -> None:
    """Serves until Ctrl-C or SIGTERM; prints the address once it answers.

    Requests under another name than the page's own are refused: see `guard.RequestGuard`.

    Args:
        port: by default the first free one from 7860 on.
        share: also through a tunnel of gradio's, to anybody who has the link.
        auth: a name and a password that are asked for.

    Raises:
        OSError: the port is taken.
        Stopped: a signal came.
    """
    gr = _gradio()
    from starlette.middleware import Middleware  # gradio brings it

    if auth is None and (share or is_open_to_all(host)):
        logger.warning(
            "whoever reaches %s can use this page without a password; --auth=NAME asks for one",
            "its public link" if share else "this machine over the network",
        )
    page.queue(default_concurrency_limit=1)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            max_file_size="64mb",
            auth=auth,
            app_kwargs={"middleware": [Middleware(RequestGuard, host, share)]},
            state_session_capacity=_MOST_TABS,
            theme=gr.themes.Default(font=_font(gr)),
        )
        print(f"open {page.local_url}", flush=True)
        if page.share_url:
            print(f"anybody can open {page.share_url}", flush=True)
        stop_requests.wait()
    finally:
        page.close(verbose=False)
        for tunnel in gr.tunneling.CURRENT_TUNNELS:
            tunnel.kill()


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder for a page, gone at the end, with what gradio keeps of uploads."""
    with tempfile.TemporaryDirectory(prefix="maft_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = os.path.join(folder, "uploads")
        yield folder


def _gradio() -> Any:
    """The package, which takes seconds to import and is an extra; it reports nothing home."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ValueError(
            f"the web page needs gradio ({error}): pip install 'maft_jax[demo]'"
        ) from error
    return gradio


def _font(gr) -> list[Any]:
    """Of gradio's own files, since its semi-bold one lacks most letters."""
    return [gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"]


def _headline(clip: Clip, weights_name: str) -> str:
    lines = [
        "## Segmentation by names",
        f"Weights: `{weights_name}` — {clip.config.vision.describe()}, pictures read at "
        f"{clip.image_size} x {clip.image_size}.",
    ]
    if weights_name.startswith("random:"):
        lines.append("**These weights are random: names are given by chance.**")
    return "\n\n".join(lines)


def _asking_side(gr, classes: str, background: str, num_proposals: int, session) -> dict[str, Any]:
    picture = gr.Image(
        label="Picture", sources=["upload", "clipboard"], height=200, elem_id="picture"
    )
    # The file as it came: gr.Image itself would meet a corrupt one with a message for programmers.
    picture.preprocess = lambda payload: None if payload is None else payload.path
    _fetch_nothing(gr, picture)
    asked = {"picture": picture}
    examples = session.draw_examples()
    samples = gr.Dataset(
        label="Drawn examples",
        components=[gr.Image(render=False, type="filepath")],
        samples=[[path] for path in examples],
        type="index",
        elem_id="examples",
    )
    asked["classes"] = gr.Textbox(
        classes,
        label="Classes",
        info='Names between commas, or one a line; "quotes" keep a comma in a name',
        placeholder="cat, sofa, lamp",
        max_lines=8,
        elem_id="classes",
    )
    asked["background"] = gr.Textbox(
        background,
        label="Background",
        info="Optional names for everything else, which stays uncoloured",
        placeholder="wall, floor",
        max_lines=4,
        elem_id="background",
    )
    asked["task"] = gr.Radio(
        [("Classes", "semantic"), ("Objects and stuff", "panoptic"), ("Objects", "instance")],
        value="semantic",
        label="Find",
        elem_id="task",
    )
    asked["things"] = gr.Textbox(
        "",
        label="Things",
        info="Classes with countable objects; empty: all, or those of a list that says it",
        placeholder="cat, sofa",
        max_lines=4,
        visible=False,
        elem_id="things",
    )
    asked["task"].change(
        lambda task: gr.Textbox(visible=task != "semantic"),
        asked["task"],
        asked["things"],
        api_visibility="private",
    )
    asked["num_proposals"] = gr.Slider(
        _PROPOSALS_STEP,
        MOST_PROPOSALS,
        num_proposals,
        step=_PROPOSALS_STEP,
        label="Proposals",
        elem_id="proposals",
    )
    asked["button"] = gr.Button("Segment", variant="primary", elem_id="segment")
    samples.click(
        lambda number: (examples[number], ", ".join(SAMPLE_CLASSES)),
        samples,
        [asked["picture"], asked["classes"]],
        api_visibility="private",
    )
    return asked


def _fetch_nothing(gr, picture) -> None:
    """Makes gradio refuse a picture that is an address, which it would fetch for a script."""
    keep = picture.async_move_resource_to_block_cache

    async def keep_uploaded(path: str | None) -> str | None:
        if "://" in str(path):
            raise gr.Error("Drop a file: this page fetches nothing.", print_exception=False)
        return await keep(path)

    picture.async_move_resource_to_block_cache = keep_uploaded


def _showing_side(gr) -> dict[str, Any]:
    files = importlib.resources.files("maft_jax.web_page")
    shown = {
        "newest": gr.State(None, time_to_live=6 * _HOUR),
        "viewer": gr.HTML(
            html_template=(files / "viewer.html").read_text(),
            css_template=(files / "viewer.css").read_text(),
            js_on_load=(files / "viewer.js").read_text(),
            elem_id="viewer",
        ),
        "opacity": gr.Slider(0, 1, _FIRST_OPACITY, step=0.05, label="Opacity", elem_id="opacity"),
    }
    with gr.Row():
        for name, label in (("overlay", "Download overlay"), ("labels", "Download labels")):
            shown[name] = gr.Button(label, size="sm", interactive=False, elem_id=name)
    shown["file"] = gr.File(visible=False)
    return shown


def _connect(gr, session: PageSession, asked: dict[str, Any], shown: dict[str, Any]) -> None:
    """What follows a click, Enter and the slider; the slider is between browser and picture."""

    def segment(picture, classes, background, num_proposals, task, things):
        of_task = {"task": task, "things": things}
        result = session.segment(picture, classes, background, int(num_proposals), **of_task)
        ready = gr.Button(interactive=True)
        return result, viewer_data(result), ready, ready

    texts = ("classes", "background", "things")
    gr.on(
        [asked["button"].click, *(asked[name].submit for name in texts)],
        _told(gr, segment),
        [asked[name] for name in ("picture", *texts[:2], "num_proposals", "task", texts[2])],
        [shown[name] for name in ("newest", "viewer", "overlay", "labels")],
        api_name="segment",
        show_progress_on=shown["viewer"],
    )
    opacity, newest, file = shown["opacity"], shown["newest"], shown["file"]
    opacity.change(None, opacity, None, js=_SHOW_OPACITY, api_visibility="private")
    for button, write, inputs in (
        ("overlay", session.write_overlay, [newest, opacity]),
        ("labels", session.write_labels, [newest]),
    ):
        written = shown[button].click(_told(gr, write), inputs, file, api_name=button)
        written.success(None, file, None, js=_DOWNLOAD, api_visibility="private")


def _told(gr, function: Callable) -> Callable:
    """`function`, whose ValueErrors and OSErrors the page shows as messages."""

    @functools.wraps(function)
    def call(*args):
        try:
            return function(*args)
        except (ValueError, OSError) as error:
            message = html.escape(str(error), quote=False)
            raise gr.Error(message, duration=20, title="Sorry", print_exception=False) from None

    return call
