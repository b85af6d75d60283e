//! Numbers as a reader wants them.

/// What stands where a figure is unknown.
pub(crate) const UNKNOWN: &str = "–";

/// Sizes in one unit, chosen so that the larger one reads well: `("1.04 MB", "0.21 MB")`. Units are decimal.
pub(crate) fn bytes_pair(a: u64, b: u64) -> (String, String) {
    let unit = unit(a.max(b));
    (in_unit(a, unit), in_unit(b, unit))
}

/// A size in the given unit, for columns that share one: `1040.13 kB`.
pub(crate) fn in_unit(size: u64, (unit, name): (u64, &str)) -> String {
    if unit == 1 { format!("{size} {name}") } else { format!("{:.2} {name}", size as f64 / unit as f64) }
}

/// The largest unit that `size` has at least one of: its bytes and its name.
pub(crate) fn unit(size: u64) -> (u64, &'static str) {
    match size {
        0..1_000 => (1, "B"),
        1_000..1_000_000 => (1_000, "kB"),
        1_000_000..1_000_000_000 => (1_000_000, "MB"),
        _ => (1_000_000_000, "GB"),
    }
}

/// A positive number with about three significant digits: `5.74`, `57.4`, `574`, `5740`, `1.2e9`.
pub(crate) fn number(value: f64) -> String {
    match value {
        v if !v.is_finite() => UNKNOWN.into(),
        0.0 => "0".into(),
        v if v < 0.001 => format!("{v:.1e}"),
        v if v < 0.1 => format!("{v:.4}"),
        v if v < 1.0 => format!("{v:.3}"),
        v if v < 100.0 => format!("{v:.2}"),
        v if v < 1_000.0 => format!("{v:.1}"),
        v if v < 1e6 => format!("{v:.0}"),
        v => format!("{v:.1e}"),
    }
}

/// A round value without trailing zeros: `0.1`, `5`, `200`.
pub(crate) fn short(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// A count with thin spaces between thousands: `260 032`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A fraction as per cent: `36.6 %`.
pub(crate) fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.1} %", 100.0 * fraction) } else { UNKNOWN.into() }
}

/// A relative change with its sign: `+5.7 %`.
pub(crate) fn change(before: f64, after: f64) -> String {
    let change = after / before - 1.0;
    if change.is_finite() { format!("{:+.1} %", 100.0 * change) } else { UNKNOWN.into() }
}

/// A ratio: `4.95×`.
pub(crate) fn times(ratio: f64) -> String {
    if ratio.is_finite() { format!("{}×", number(ratio)) } else { UNKNOWN.into() }
}

/// A duration: `0.05 s`, `14.2 s`, `3 min 05 s`, `2 h 10 min`.
pub(crate) fn seconds(value: f64) -> String {
    let whole = value.round() as u64;
    match value {
        v if !v.is_finite() || v < 0.0 => UNKNOWN.into(),
        v if v < 10.0 => format!("{v:.2} s"),
        v if v < 60.0 => format!("{v:.1} s"),
        v if v < 3600.0 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_share_the_unit_of_the_larger() {
        assert_eq!(bytes_pair(1_040_128, 209_920), ("1.04 MB".into(), "0.21 MB".into()));
        assert_eq!(bytes_pair(999, 0), ("999 B".into(), "0 B".into()));
        assert_eq!(in_unit(13_476_839_424, unit(9_000_000_000)), "13.48 GB");
    }

    #[test]
    fn numbers_keep_about_three_digits() {
        let shown = [5.7402, 57.402, 574.02, 57402.0, 1.25e9, 0.139, 0.0487, 0.00001, f64::NAN].map(number);
        assert_eq!(shown, ["5.74", "57.40", "574.0", "57402", "1.2e9", "0.139", "0.0487", "1.0e-5", UNKNOWN]);
        assert_eq!(count(1_260_032), "1\u{202f}260\u{202f}032");
        assert_eq!([0.1 + 0.2, 0.0, 200.0].map(short), ["0.3", "0", "200"]);
        assert_eq!(change(5.0, 5.25), "+5.0 %");
        assert_eq!(change(0.0, 0.0), UNKNOWN);
        assert_eq!(times(4.25), "4.25×");
    }

    #[test]
    fn durations_choose_their_unit() {
        assert_eq!([0.05, 14.2, 185.0, 7800.0].map(seconds), ["0.05 s", "14.2 s", "3 min 05 s", "2 h 10 min"]);
    }
}
