//! Drawings as SVG that take their colours from the page around them, so that they follow light, dark and print.
//!
//! plotters knows only fixed colours. Here every colour is a placeholder that names a role; once the drawing is
//! done, each placeholder becomes a class (`fill-ink`, `stroke-series-2`, …) and the page's style sheet decides.

use std::ops::Range;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::data::Report;
use super::format::{short, unit};

/// How many series get a colour of their own; further ones start over.
pub(crate) const SERIES: usize = 8;

const INK: RGBColor = RGBColor(0, 0, 1);
const MUTED: RGBColor = RGBColor(0, 0, 2);
const GRID: RGBColor = RGBColor(0, 0, 3);
const ACCENT: RGBColor = RGBColor(0, 0, 4);

fn series(index: usize) -> RGBColor {
    RGBColor(0, 1, (index % SERIES) as u8)
}

fn roles() -> impl Iterator<Item = (RGBColor, String)> {
    let fixed = [(INK, "ink"), (MUTED, "muted"), (GRID, "grid"), (ACCENT, "accent")];
    fixed
        .map(|(color, role)| (color, role.to_string()))
        .into_iter()
        .chain((0..SERIES).map(|i| (series(i), format!("series-{i}"))))
}

/// A drawing with the names of its series, in the order of their colours.
#[derive(Debug)]
pub(crate) struct Chart {
    /// The `<svg>` element.
    pub svg: String,
    /// Series `i` is drawn in the colour `i % SERIES`.
    pub legend: Vec<String>,
}

/// The error of every projection by block, one line per kind of projection. `None` if there is nothing to draw.
pub(crate) fn errors(report: &Report) -> Result<Option<Chart>> {
    let mut lines: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
    for module in report.modules.iter().filter(|module| module.error.is_finite()) {
        let kind = module.name.rsplit('.').next().unwrap_or(&module.name);
        let point = (module.block as f64, module.error);
        match lines.iter_mut().find(|(name, _)| *name == kind) {
            Some((_, points)) => points.push(point),
            None => lines.push((kind, vec![point])),
        }
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    if points().next().is_none() {
        return Ok(None);
    }
    let last = points().map(|p| p.0).fold(0.0, f64::max);
    let top = points().map(|p| p.1).fold(0.0, f64::max).max(1e-9);
    let blocks = Axis { range: -0.5..last + 0.5, log: false };
    let error = Axis { range: 0.0..top * 1.06, log: false };

    let svg = draw((720, 300), "Relative error of every projection by block", |root| {
        let ticks = blocks.ticks(14).into_iter().filter(|t| t.fract() == 0.0);
        let plane = Plane::new(root, &blocks, &error)?;
        plane.axes(ticks, short, error.ticks(5).into_iter(), short)?;
        for (i, (_, points)) in lines.iter().enumerate() {
            // Experts put several points into one block: a line through them would mean nothing.
            if points.is_sorted_by(|a, b| a.0 < b.0) {
                plane.line(points, series(i), 2)?;
            }
            points.iter().try_for_each(|&point| plane.dot(point, 3, series(i), true))?;
        }
        Ok(())
    })?;
    Ok(Some(Chart { svg, legend: lines.into_iter().map(|(name, _)| name.to_string()).collect() }))
}

/// Loss against tokens (in millions). `None` if there are fewer than two points.
pub(crate) fn losses(points: &[(f64, f64)]) -> Result<Option<String>> {
    let points: Vec<_> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let [.., (last, _)] = points[..] else { return Ok(None) };
    if points.len() < 2 {
        return Ok(None);
    }
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|p| p.1).fold(0.0, f64::max);
    let tokens = Axis { range: 0.0..last.max(1e-9), log: false };
    let loss = Axis { range: (low - 0.05 * (high - low)).max(0.0)..high + 0.05 * (high - low).max(1e-9), log: false };
    let svg = draw((720, 320), "Loss by millions of tokens", |root| {
        let plane = Plane::new(root, &tokens, &loss)?;
        plane.axes(tokens.ticks(8).into_iter(), short, loss.ticks(6).into_iter(), short)?;
        plane.line(&points, ACCENT, 2)
    })?;
    Ok(Some(svg))
}

/// A drawn map of size and quality.
#[derive(Debug)]
pub(crate) struct Map {
    /// The `<svg>` element.
    pub svg: String,
    /// The unit of its sizes.
    pub unit: &'static str,
}

/// One run on the map of size and quality.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spot {
    /// Its name.
    pub label: String,
    /// Size on disk.
    pub bytes: u64,
    /// Perplexity; a spot without a finite one is not drawn.
    pub perplexity: f64,
    /// What it is.
    pub kind: Kind,
}

/// What a [`Spot`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A compressed model that no other one beats in both size and perplexity.
    Optimal,
    /// An uncompressed model.
    Dense,
    /// Any other compressed model.
    Beaten,
}

/// Perplexity against size. Both axes turn logarithmic when the values span more than a factor of five.
/// `None` if there is nothing to draw.
pub(crate) fn frontier(spots: &[Spot]) -> Result<Option<Map>> {
    let mut spots: Vec<&Spot> =
        spots.iter().filter(|s| s.perplexity.is_finite() && s.perplexity > 0.0 && s.bytes > 0).collect();
    if spots.is_empty() {
        return Ok(None);
    }
    // The most interesting are labelled first and drawn last.
    spots.sort_by(|a, b| a.kind.cmp(&b.kind).then(a.bytes.cmp(&b.bytes)).then(a.label.cmp(&b.label)));
    let (size, unit) = unit(spots.iter().map(|s| s.bytes).min().unwrap_or(1));
    let at = |spot: &Spot| (spot.bytes as f64 / size as f64, spot.perplexity);
    let x = Axis::around(spots.iter().map(|s| at(s).0));
    let y = Axis::around(spots.iter().map(|s| at(s).1));

    let svg = draw((720, 440), "Perplexity against size on disk", |root| {
        let plane = Plane::new(root, &x, &y)?;
        plane.axes(x.ticks(7).into_iter(), short, y.ticks(6).into_iter(), short)?;
        let front: Vec<_> = spots.iter().filter(|s| s.kind == Kind::Optimal).map(|s| at(s)).collect();
        let steps: Vec<_> =
            front.windows(2).flat_map(|pair| [pair[0], (pair[1].0, pair[0].1)]).chain(front.last().copied()).collect();
        plane.line(&steps, ACCENT, 1)?;
        for spot in spots.iter().rev() {
            match spot.kind {
                Kind::Optimal => plane.dot(at(spot), 5, ACCENT, true)?,
                Kind::Dense => plane.dot(at(spot), 5, INK, false)?,
                Kind::Beaten => plane.dot(at(spot), 4, MUTED, false)?,
            }
        }
        let dots = spots.iter().map(|s| plane.pixel(at(s))).map(|(x, y)| Area::new((x - 6, y - 6), (x + 6, y + 6)));
        let front = steps.windows(2).map(|ends| Area::new(plane.pixel(ends[0]), plane.pixel(ends[1])));
        let mut labels = Labels { size: (720, 440), taken: dots.chain(front).collect() };
        for spot in &spots {
            let optimal = spot.kind == Kind::Optimal;
            if let Some(place) = labels.place(plane.pixel(at(spot)), &spot.label, optimal) {
                let color = if spot.kind == Kind::Beaten { MUTED } else { INK };
                root.draw(&Text::new(spot.label.as_str(), place, text(color, HPos::Left, VPos::Center)))
                    .map_err(drawing)?;
            }
        }
        Ok(())
    })?;
    Ok(Some(Map { svg, unit }))
}

/// A range of values, linear or logarithmic.
struct Axis {
    range: Range<f64>,
    log: bool,
}

impl Axis {
    /// A range with some air around all values, which must be positive.
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::INFINITY, 0f64), |(low, high), v| (low.min(v), high.max(v)));
        let log = high / low > 5.0;
        if log {
            let air = (high / low).powf(0.08);
            return Self { range: low / air..high * air, log };
        }
        let air = if high > low { 0.12 * (high - low) } else { 0.1 * high };
        Self { range: (low - air).max(0.0)..high + air, log }
    }

    fn place(&self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// About `wanted` round values inside the range.
    fn ticks(&self, wanted: usize) -> Vec<f64> {
        let Range { start, end } = self.range;
        if self.log {
            let decades = start.log10().floor() as i32..=end.log10().ceil() as i32;
            let of = |mantissas: &[f64]| -> Vec<f64> {
                let all = decades.clone().flat_map(|k| mantissas.iter().map(move |m| m * 10f64.powi(k)));
                all.filter(|v| self.range.contains(v)).collect()
            };
            let ticks = of(&[1.0, 2.0, 5.0]);
            return if ticks.len() > wanted + 2 { of(&[1.0]) } else { ticks };
        }
        let rough = (end - start) / wanted.max(1) as f64;
        let decade = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * decade).find(|&s| s >= rough * 0.999).unwrap_or(rough);
        ((start / step).ceil() as i64..=(end / step).floor() as i64).map(|i| i as f64 * step).collect()
    }
}

// Pixels around the plane, for the labels of the axes.
const LEFT: i32 = 56;
const RIGHT: i32 = 12;
const TOP: i32 = 12;
const BOTTOM: i32 = 28;

type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A drawing area with data coordinates.
struct Plane<'s, 'a> {
    area: DrawingArea<SVGBackend<'s>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    x: &'a Axis,
    y: &'a Axis,
}

impl<'s, 'a> Plane<'s, 'a> {
    fn new(root: &Root<'s>, x: &'a Axis, y: &'a Axis) -> Result<Self> {
        let (width, height) = root.dim_in_pixel();
        let span = |axis: &Axis| axis.place(axis.range.start)..axis.place(axis.range.end);
        let pixels = (LEFT..width as i32 - RIGHT, height as i32 - BOTTOM..TOP);
        Ok(Self { area: root.apply_coord_spec(Cartesian2d::new(span(x), span(y), pixels)), x, y })
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x.place(x), self.y.place(y))
    }

    fn pixel(&self, point: (f64, f64)) -> (i32, i32) {
        self.area.map_coordinate(&self.at(point))
    }

    /// Grid lines across, ticks below and their labels.
    fn axes(
        &self,
        xs: impl Iterator<Item = f64>,
        x_label: impl Fn(f64) -> String,
        ys: impl Iterator<Item = f64>,
        y_label: impl Fn(f64) -> String,
    ) -> Result<()> {
        let (x, y) = (&self.x.range, &self.y.range);
        for tick in ys {
            self.line(&[(x.start, tick), (x.end, tick)], GRID, 1)?;
            self.label((x.start, tick), (-8, 0), y_label(tick), text(MUTED, HPos::Right, VPos::Center))?;
        }
        self.line(&[(x.start, y.start), (x.end, y.start)], MUTED, 1)?;
        for tick in xs {
            self.label((tick, y.start), (0, 8), x_label(tick), text(MUTED, HPos::Center, VPos::Top))?;
        }
        Ok(())
    }

    fn line(&self, points: &[(f64, f64)], color: RGBColor, width: u32) -> Result<()> {
        let path: Vec<_> = points.iter().map(|&point| self.at(point)).collect();
        self.area.draw(&PathElement::new(path, color.stroke_width(width))).map_err(drawing)
    }

    fn dot(&self, point: (f64, f64), radius: i32, color: RGBColor, filled: bool) -> Result<()> {
        let style = ShapeStyle { color: color.to_rgba(), filled, stroke_width: 2 };
        self.area.draw(&Circle::new(self.at(point), radius, style)).map_err(drawing)
    }

    fn label(&self, point: (f64, f64), offset: (i32, i32), label: String, style: TextStyle<'_>) -> Result<()> {
        let element = EmptyElement::at(self.at(point)) + Text::new(label, offset, style);
        self.area.draw(&element).map_err(drawing)
    }
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy)]
struct Area {
    low: (i32, i32),
    high: (i32, i32),
}

impl Area {
    /// The rectangle between two corners, which it contains.
    fn new(a: (i32, i32), b: (i32, i32)) -> Self {
        Self { low: (a.0.min(b.0), a.1.min(b.1)), high: (a.0.max(b.0), a.1.max(b.1)) }
    }

    fn meets(&self, other: &Self) -> bool {
        let overlap = |low: i32, high: i32, other_low: i32, other_high: i32| low <= other_high && other_low <= high;
        overlap(self.low.0, self.high.0, other.low.0, other.high.0)
            && overlap(self.low.1, self.high.1, other.low.1, other.high.1)
    }
}

/// Keeps labels off each other, the dots and the lines.
struct Labels {
    size: (i32, i32),
    taken: Vec<Area>,
}

impl Labels {
    /// Left end and middle height of a label for the dot at `(x, y)`; `None` where it would cover something.
    /// Below and left of an optimal dot there is nothing by definition: `optimal` looks there first.
    fn place(&mut self, (x, y): (i32, i32), label: &str, optimal: bool) -> Option<(i32, i32)> {
        let width = 7 * label.chars().count() as i32;
        let left = [(x - 9 - width, y), (x - 6 - width, y + 12), (x - width / 2, y + 15)];
        let right = [(x + 9, y), (x + 6, y - 12), (x - width / 2, y - 15), (x + 6, y + 12), (x - 6 - width, y - 12)];
        let candidates = if optimal { [&left[..], &right[..]] } else { [&right[..], &left[..]] };
        let found = candidates.concat().into_iter().find_map(|(left, middle)| {
            let area = Area::new((left, middle - 7), (left + width, middle + 7));
            let inside = area.low.0 >= LEFT
                && area.high.0 <= self.size.0
                && area.low.1 >= 0
                && area.high.1 <= self.size.1 - BOTTOM;
            (inside && !self.taken.iter().any(|taken| taken.meets(&area))).then_some((left, middle, area))
        });
        let (left, middle, area) = found?;
        self.taken.push(area);
        Some((left, middle))
    }
}

fn text(color: RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    // plotters divides font sizes by 1.24: this comes out as 12 px.
    ("sans-serif", 14.88).into_font().color(&color).pos(Pos::new(horizontal, vertical))
}

fn drawing<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("the chart cannot be drawn: {error}")
}

/// Runs `paint` on a canvas of `size` and names the colours.
fn draw(size: (u32, u32), title: &str, paint: impl for<'a> FnOnce(&Root<'a>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        paint(&root)?;
        root.present().map_err(drawing)?;
    }
    // The page scales the drawing: it keeps its proportions, not its size.
    let opening = format!("<svg width=\"{}\" height=\"{}\"", size.0, size.1);
    let rest = svg.strip_prefix(&opening).context("the chart does not begin with its size")?;
    svg = format!("<svg role=\"img\" aria-label=\"{title}\"{rest}");
    for (RGBColor(r, g, b), role) in roles() {
        for paint in ["fill", "stroke"] {
            svg = svg.replace(&format!("{paint}=\"#{r:02X}{g:02X}{b:02X}\""), &format!("class=\"{paint}-{role}\""));
        }
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::super::data::example;
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let linear = Axis { range: 0.0..0.27, log: false };
        let shown: Vec<String> = linear.ticks(5).into_iter().map(short).collect();
        assert_eq!(shown, ["0", "0.1", "0.2"]);
        let log = Axis { range: 4.0..60.0, log: true };
        assert_eq!(log.ticks(6), [5.0, 10.0, 20.0, 50.0]);
        let wide = Axis { range: 4.0..60_000.0, log: true };
        assert_eq!(wide.ticks(6), [10.0, 100.0, 1000.0, 10000.0]);
    }

    #[test]
    fn axes_turn_logarithmic_beyond_a_factor_of_five() {
        assert!(!Axis::around([5.0, 9.0].into_iter()).log);
        assert!(Axis::around([5.0, 90.0].into_iter()).log);
        let one = Axis::around([5.0].into_iter());
        assert!(one.range.start < 5.0 && 5.0 < one.range.end);
    }

    #[test]
    fn drawings_name_roles_and_no_colours() {
        let chart = errors(&example()).unwrap().unwrap();
        assert_eq!(chart.legend.len(), 7);
        assert!(chart.svg.contains("class=\"stroke-series-6\"") && chart.svg.contains("class=\"fill-muted\""));
        assert!(!chart.svg.contains("=\"#"), "{}", chart.svg);
        assert_eq!(chart.svg.matches("<circle").count(), 35);
    }

    #[test]
    fn nothing_to_draw_is_no_drawing() {
        let mut report = example();
        report.modules.iter_mut().for_each(|module| module.error = f64::NAN);
        assert!(errors(&report).unwrap().is_none());
        let lost = Spot { label: "x".into(), bytes: 1, perplexity: f64::NAN, kind: Kind::Beaten };
        assert!(frontier(&[lost]).unwrap().is_none());
    }

    #[test]
    fn names_are_escaped_and_labels_kept_apart() {
        let spot = |label: &str, bytes| Spot { label: label.into(), bytes, perplexity: 6.0, kind: Kind::Beaten };
        let svg = frontier(&[spot("<b>&\"", 1_000_000), spot("other", 1_500_000)]).unwrap().unwrap().svg;
        assert!(svg.contains("&lt;b&gt;&amp;&quot;") && !svg.contains("<b>"), "{svg}");

        let dot = Area::new((294, 194), (306, 206));
        let mut labels = Labels { size: (720, 440), taken: vec![dot] };
        let mut places = Vec::new();
        while let Some((left, middle)) = labels.place((300, 200), "a name", places.is_empty()) {
            places.push(Area::new((left, middle - 7), (left + 42, middle + 7)));
        }
        assert!(places.len() >= 4);
        for (i, place) in places.iter().enumerate() {
            assert!(!place.meets(&dot) && places[..i].iter().all(|other| !other.meets(place)));
        }
        assert!(places[0].high.0 < 300, "the label of an optimal dot starts on its free side");
    }
}
