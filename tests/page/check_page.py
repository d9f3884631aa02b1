"""Opens a run's report.html in headless Chromium and checks it; made on demand, not part of the tests.

    python check_page.py RUN/report.html [--chromium PATH] [--shots DIR]

Needs `pip install playwright` and a Chromium (`playwright install chromium`, or any by --chromium).
At 1280 and 390 pixels, light and dark: nothing wider than the window, a text for every picture, no
console message, no request to anywhere.  The points of the loss curve are turned back into numbers
and compared with metrics.jsonl beside the page.
"""

import argparse
import json
import pathlib
import re
import sys

from playwright.sync_api import sync_playwright

WIDE = """() => {
  const limit = document.documentElement.clientWidth;
  const scrolls = e => { for (; e; e = e.parentElement) if (getComputedStyle(e).overflowX === 'auto') return true; };
  return { page: document.documentElement.scrollWidth - limit,
           parts: [...document.body.querySelectorAll('*')]
             .filter(e => e.getBoundingClientRect().right > limit + 1 && !scrolls(e))
             .map(e => e.tagName + ' ' + (e.textContent || '').slice(0, 40)) };
}"""
UNNAMED = """() => [...document.querySelectorAll('img')].filter(i => !i.alt || !i.naturalWidth).length
  + [...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label')).length"""
FIGURES = "() => [document.images.length, document.querySelectorAll('svg').length]"
CURVE = """() => {
  const chart = document.querySelector('[data-chart="Training loss"]');
  return [chart.dataset.box, chart.dataset.x, chart.dataset.y,
          [...chart.querySelectorAll('[data-series="loss"] path')].map(p => p.getAttribute('d')).join('')];
}"""


def curve_error(page, run):
    """Largest difference of the drawn losses from the logged ones, and what a hundredth of a pixel is."""
    box, _, ys, path = page.evaluate(CURVE)
    left, right, top, bottom = map(float, box.split())
    low, high = map(float, ys.split())
    drawn = [low + (bottom - float(y)) / (bottom - top) * (high - low) for y in re.findall(r"[ML][\d.-]+ ([\d.-]+)", path)]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line["loss"] for line in lines if "loss" in line]
    if len(drawn) != len(logged):
        return None, f"{len(drawn)} points drawn, {len(logged)} logged"
    return max(abs(a - b) for a, b in zip(drawn, logged)), 0.01 / (bottom - top) * (high - low)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--chromium")
    parser.add_argument("--shots", type=pathlib.Path)
    args = parser.parse_args()
    wrong = []
    with sync_playwright() as playwright:
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                name = f"{width} {scheme}"
                # A browser each: some builds run as a single process and end with their first context.
                browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu", "--single-process"])
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page = context.new_page()
                page.on("console", lambda m: wrong.append(f"{name}: console: {m.text}"))
                page.on("pageerror", lambda e: wrong.append(f"{name}: error: {e}"))
                page.on("request", lambda r: r.url.startswith(("file:", "data:")) or wrong.append(f"{name}: asks {r.url}"))
                page.goto(args.page.resolve().as_uri())
                wide = page.evaluate(WIDE)
                if wide["page"] > 0 or wide["parts"]:
                    wrong.append(f"{name}: too wide: {wide}")
                unnamed = page.evaluate(UNNAMED)
                if unnamed:
                    wrong.append(f"{name}: {unnamed} pictures without text or content")
                images, charts = page.evaluate(FIGURES)
                error, step = curve_error(page, args.page.parent)
                if error is None or error > step:
                    wrong.append(f"{name}: loss curve: {error} {step}")
                curve = "not as logged" if error is None else f"within {error:.2g} (a step of the drawing: {step:.2g})"
                print(f"{name}: {images} pictures, {charts} charts, loss curve {curve}")
                if args.shots:
                    args.shots.mkdir(exist_ok=True, parents=True)
                    page.screenshot(path=args.shots / f"{width}-{scheme}.png", full_page=True)
                browser.close()
    print("\n".join(wrong) or "nothing wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
