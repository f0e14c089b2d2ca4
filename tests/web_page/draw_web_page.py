"""Draws docs/web_page.png: the page in a browser, with weights that learned the drawn examples.

    python -c "from input_pipeline.sample_folder import write_sample_folder as write; \\
        write('drawings', num_images=24)"
    python -m maft_jax.main --config=configs/folder.py:tiny --workdir=runs/shapes \\
        --config.data.root=drawings --config.model.pretrained=random:tiny \\
        --config.num_steps=1000 --config.loss.distillation_weight=0.0
    cp runs/shapes/tuned.safetensors .
    python -m tests.web_page.draw_web_page tuned.safetensors docs/web_page.png

Four minutes on a laptop. The example is none of the 24 pictures that were trained on.
"""

import io
import sys

from PIL import Image

from tests.web_page.web_pages import browser_page, serving


def segment_example(tab, number: int) -> None:
    """Clicks on an example and then on the button, and waits for the result."""
    tab.evaluate("document.querySelector('#viewer .note').textContent = ''")
    tab.click(f"#examples img >> nth={number}")
    tab.wait_for_selector(f"#picture img[src$='example_{number + 1}.png']")
    tab.click("#segment")
    tab.wait_for_function("document.querySelector('#viewer .note').textContent")


def draw(weights: str, out: str) -> None:
    """Segments the first example, and writes the window with the pointer on the grass."""
    with serving(f"--weights={weights}") as (address, _), browser_page() as tab:
        tab.goto(address)
        tab.wait_for_selector("#segment")
        segment_example(tab, 1)  # compiles, so that the next one says what a picture takes
        segment_example(tab, 0)
        tab.wait_for_timeout(500)  # milliseconds, for transitions
        box = tab.locator("#viewer .colours").bounding_box()
        tab.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.75 * box["height"])
        tab.wait_for_timeout(500)
        window = tab.screenshot()
    with Image.open(io.BytesIO(window)) as image:
        image.convert("RGB").quantize(256, kmeans=8).save(out, optimize=True)


if __name__ == "__main__":
    draw(*sys.argv[1:])
