"""Draws look-up latency against the number of keys from raw runs, of several the fastest: index_plot.py OUT.svg RUN.jsonl..."""

import json
import math
import sys

COLOURS = {"afli": "#d1495b", "btree": "#30638e", "sorted": "#8d96a3", "eytzinger": "#66a182", "pgm": "#edae49", "radix-spline": "#8f5aa8"}
WIDTH, HEIGHT, LEFT, TOP = 420, 300, 52, 30


def main(out, files):
    series = {}
    for file in files:
        for line in open(file):
            keys, n, row = line.split(None, 2)
            row = json.loads(row)
            if row["mix"] == "get" and row["structure"] in COLOURS:
                points = series.setdefault(keys, {}).setdefault(row["structure"], {})
                points[int(n)] = min(row["best_ns"], points.get(int(n), math.inf))
    parts = []
    for i, (keys, structures) in enumerate(sorted(series.items(), reverse=True)):
        ns = [n for points in structures.values() for n in points]
        values = [v for points in structures.values() for v in points.values()]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        first, last = math.log10(min(ns)), math.log10(max(ns))
        x = lambda n: i * WIDTH + LEFT + (WIDTH - LEFT - 90) * (math.log10(n) - first) / max(last - first, 1e-9)
        y = lambda v: TOP + (HEIGHT - TOP - 40) * (high - math.log10(v)) / (high - low)
        text = lambda at, to, words, anchor="middle": f'<text x="{at:.0f}" y="{to:.0f}" text-anchor="{anchor}">{words}</text>'
        parts.append(text(x(10 ** ((first + last) / 2)), 18, f"{keys}: ns per look-up"))
        for tick in range(low, high + 1):
            at = y(10**tick)
            parts.append(f'<path d="M{x(min(ns)):.0f} {at:.0f}H{x(max(ns)):.0f}" stroke="#ddd"/>' + text(x(min(ns)) - 6, at + 4, 10**tick, "end"))
        for n in sorted(set(ns)):
            parts.append(text(x(n), HEIGHT - 20, f"{n:.0e}".replace("e+0", "e")))
        for name, points in structures.items():
            line = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in sorted(points.items()))
            n, v = max(points.items())
            parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
            parts.append(f'<g fill="{COLOURS[name]}">{text(x(n) + 5, y(v) + 4, name, "start")}</g>')
    body = "\n".join(parts)
    size = f'viewBox="0 0 {WIDTH * len(series)} {HEIGHT}"'
    open(out, "w").write(f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n')


main(sys.argv[1], sys.argv[2:])
