//! Plots as inline SVG: intervals on one axis, with what they are held against. Colours are those of the style sheet, so that a plot
//! is legible in the light, in the dark and on paper; nothing is told by colour alone.

use super::figure::{Figure, MISSING, Unit};
use super::markup::{Markup, tag, text};

/// The width of a plot and of its columns: labels, the axis, figures in words.
const WIDTH: f64 = 720.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 480.0;
/// The height of a row, of the space above the rows, of the axis under them.
const ROW: f64 = 26.0;
const HEAD: f64 = 20.0;
const FOOT: f64 = 24.0;
/// Characters of a label that fit beside the axis.
const LABEL_CHARS: usize = 25;
/// Ticks of an axis, about.
const TICKS: f64 = 4.0;

/// One line of a plot.
pub(super) struct Row {
    pub(super) label: String,
    /// `None` is said in words.
    pub(super) figure: Option<Figure>,
    /// Drawn as a bar from zero, since zero is no difference.
    pub(super) bar: bool,
    pub(super) tone: Tone,
    /// What stands behind the figure instead of its interval, such as a verdict.
    pub(super) note: Option<String>,
    /// What chance alone seldom exceeds, from zero on.
    pub(super) chance: Option<f64>,
}

/// How a row is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Bad,
    /// It cannot be told.
    Open,
}

impl Tone {
    pub(super) fn class(self) -> &'static str {
        match self {
            Tone::Plain => "plain",
            Tone::Good => "good",
            Tone::Bad => "bad",
            Tone::Open => "open",
        }
    }
}

/// What figures are held against: a line across all rows.
pub(super) struct Mark {
    pub(super) at: f64,
    pub(super) label: String,
}

impl Row {
    pub(super) fn new(label: impl Into<String>, figure: Option<Figure>) -> Self {
        Self { label: label.into(), figure, bar: false, tone: Tone::Plain, note: None, chance: None }
    }
}

impl Mark {
    pub(super) fn new(at: f64, label: impl Into<String>) -> Self {
        Self { at, label: label.into() }
    }
}

/// Where numbers stand on the axis.
struct Axis {
    from: f64,
    to: f64,
}

impl Axis {
    /// Wide enough for all that is finite, with a margin.
    fn of(rows: &[Row], marks: &[Mark]) -> Self {
        let figures = rows.iter().filter_map(|row| row.figure).flat_map(|one| [one.value, one.low, one.high]);
        let zeros = rows.iter().filter(|row| row.bar).map(|_| 0.0);
        let chances = rows.iter().filter_map(|row| row.chance);
        let all = figures.chain(zeros).chain(chances).chain(marks.iter().map(|mark| mark.at));
        let finite = all.filter(|number| number.is_finite());
        let (from, to) =
            finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), one| (from.min(one), to.max(one)));
        if from > to {
            return Self { from: 0.0, to: 1.0 };
        }
        let margin = if to > from { 0.07 * (to - from) } else { 0.5 * from.abs().max(1e-3) };
        let from = if from >= 0.0 && from < margin { 0.0 } else { from - margin };
        Self { from, to: to + margin }
    }

    fn place(&self, number: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * ((number - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    /// Round numbers on the axis.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.to - self.from) / TICKS;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let (first, last) = ((self.from / step).ceil() as i64, (self.to / step).floor() as i64);
        (first..=last).map(|at| at as f64 * step).collect()
    }
}

/// The figures of `rows` on one axis, held against `marks`; `title` is for those who cannot see it.
pub(super) fn intervals(title: &str, unit: &Unit, rows: &[Row], marks: &[Mark]) -> Markup {
    let axis = Axis::of(rows, marks);
    let bottom = HEAD + ROW * rows.len() as f64;
    let mut drawn = vec![tag("title", &[], [text(title)])];
    if rows.iter().any(|row| row.figure.is_some()) {
        for tick in axis.ticks() {
            let at = axis.place(tick);
            drawn.push(line("grid", [at, HEAD, at, bottom]));
            drawn.push(label("tick", at, bottom + 15.0, "middle", &short(unit, tick)));
        }
        let mut marks: Vec<&Mark> = marks.iter().collect();
        marks.sort_by(|one, other| one.at.total_cmp(&other.at));
        let middle = 0.5 * (LEFT + RIGHT);
        for (index, mark) in marks.iter().enumerate() {
            let at = axis.place(mark.at);
            drawn.push(line("mark", [at, HEAD - 4.0, at, bottom]));
            // Two of them turn their backs to each other; one stays inside the plot.
            let anchor = match (marks.len(), index) {
                (1, _) if at > middle => "end",
                (1, _) => "start",
                (_, 0) => "end",
                _ => "start",
            };
            drawn.push(label("mark-label", at, HEAD - 8.0, anchor, &mark.label));
        }
    }
    for (at, row) in rows.iter().enumerate() {
        draw(row, unit, &axis, HEAD + ROW * (at as f64 + 0.5), &mut drawn);
    }
    let view = format!("0 0 {WIDTH} {}", bottom + FOOT);
    let attributes = [("class", "plot"), ("viewBox", view.as_str()), ("role", "img"), ("aria-label", title)];
    tag("svg", &attributes, drawn)
}

fn draw(row: &Row, unit: &Unit, axis: &Axis, middle: f64, drawn: &mut Vec<Markup>) {
    let tone = row.tone.class();
    drawn.push(label("label", LEFT - 10.0, middle + 4.0, "end", &shortened(&row.label)));
    let Some(figure) = &row.figure else {
        drawn.push(label("missing", RIGHT + 12.0, middle + 4.0, "start", row.note.as_deref().unwrap_or(MISSING)));
        return;
    };
    if let Some(chance) = row.chance {
        drawn.push(rect("chance", [axis.place(0.0), middle - 10.0, axis.place(chance) - axis.place(0.0), 20.0]));
    }
    let at = axis.place(figure.value);
    if row.bar {
        let zero = axis.place(0.0);
        drawn.push(rect(&format!("bar {tone}"), [zero.min(at), middle - 6.0, (at - zero).abs().max(1.0), 12.0]));
    }
    if figure.low < figure.high {
        let (low, high) = (axis.place(figure.low), axis.place(figure.high));
        drawn.push(line(&format!("whisker {tone}"), [low, middle, high, middle]));
        // An end that is not known has no cap: the line leaves the plot.
        for end in [figure.low, figure.high].into_iter().filter(|end| end.is_finite()).map(|end| axis.place(end)) {
            drawn.push(line(&format!("whisker {tone}"), [end, middle - 5.0, end, middle + 5.0]));
        }
    }
    if !row.bar {
        let (x, y) = (number(at), number(middle));
        let class = format!("dot {tone}");
        drawn.push(tag("circle", &[("class", &class), ("cx", &x), ("cy", &y), ("r", "4.5")], []));
    }
    let told = row.note.clone().unwrap_or_else(|| unit.write_whole(figure));
    drawn.push(label("told", RIGHT + 12.0, middle + 4.0, "start", &told));
}

/// Numbers of an axis: no more decimals than it takes.
fn short(unit: &Unit, number: f64) -> String {
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    let written = |number: f64, decimals| trimmed(super::figure::grouped(number, decimals));
    match unit {
        Unit::Share => format!("{}%", written(number * 100.0, 2)),
        Unit::Money(_) | Unit::Number => written(number, 3),
        Unit::Customers => written(number, 1),
    }
}

fn shortened(label: &str) -> String {
    match label.char_indices().nth(LABEL_CHARS) {
        Some(_) => label.chars().take(LABEL_CHARS - 1).chain(['\u{2026}']).collect(),
        None => label.to_owned(),
    }
}

fn number(number: f64) -> String {
    format!("{:.1}", number)
}

fn line(class: &str, ends: [f64; 4]) -> Markup {
    let [x1, y1, x2, y2] = ends.map(number);
    tag("line", &[("class", class), ("x1", &x1), ("y1", &y1), ("x2", &x2), ("y2", &y2)], [])
}

fn rect(class: &str, place: [f64; 4]) -> Markup {
    let [x, y, width, height] = place.map(number);
    tag("rect", &[("class", class), ("x", &x), ("y", &y), ("width", &width), ("height", &height)], [])
}

fn label(class: &str, x: f64, y: f64, anchor: &str, words: &str) -> Markup {
    let (x, y) = (number(x), number(y));
    tag("text", &[("class", class), ("x", &x), ("y", &y), ("text-anchor", anchor)], [text(words)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One element per line.
    fn lines(plot: &Markup) -> String {
        plot.as_str().replace("><", ">\n<")
    }

    #[test]
    fn an_interval_that_crosses_its_target() {
        let figure = Figure { value: 0.15, low: 0.05, high: 0.25, n: Some(300) };
        let rows = [Row { tone: Tone::Open, ..Row::new("reduction", Some(figure)) }];
        let plot = intervals("Reduction", &Unit::Share, &rows, &[Mark::new(0.2, "target 20.0%")]);
        insta::assert_snapshot!(lines(&plot));
        // The line of the target stands between the ends.
        let axis = Axis::of(&rows, &[]);
        assert!(axis.place(0.05) < axis.place(0.2) && axis.place(0.2) < axis.place(0.25));
    }

    #[test]
    fn what_is_missing_is_said_and_what_comes_from_outside_is_text() {
        let open = Figure { value: 2.0, low: 1.0, high: f64::INFINITY, n: None };
        let rows = [Row::new("<b>\"x\"</b>", None), Row::new("a name that is far longer than its place", Some(open))];
        let plot = intervals("a & b", &Unit::Number, &rows, &[]);
        insta::assert_snapshot!(lines(&plot));
    }

    #[test]
    fn an_axis_has_a_few_round_ticks_whatever_stands_on_it() {
        for (low, high) in [(0.0, 1.0), (-3.0, 0.001), (1e-6, 2e-6), (-4e9, 5e9), (7.0, 7.0), (0.0, 0.0)] {
            let figure = Figure { value: low, low, high, n: None };
            let axis = Axis::of(&[Row::new("", Some(figure))], &[]);
            let ticks = axis.ticks();
            assert!((1..=10).contains(&ticks.len()), "{low} to {high}: {ticks:?}");
            assert!(ticks.iter().all(|tick| *tick >= axis.from && *tick <= axis.to));
        }
    }
}
