//! Reports for people: a terminal, a page, a README. Pure.

pub mod html;
pub mod markdown;
mod svg;
pub mod text;

use crate::model::{Against, Family, Goal, Report, Verdict};

/// Three digits that count.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "–".to_owned()
    } else if size == 0.0 {
        "0".to_owned()
    } else if size >= 99.95 {
        thousands(value)
    } else if size >= 9.995 {
        format!("{value:.1}")
    } else if size >= 0.0995 {
        format!("{value:.2}")
    } else if size >= 0.000_05 {
        format!("{value:.4}")
    } else {
        format!("{value:.1e}")
    }
}

/// A whole number with a comma between thousands.
pub fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if value < 0.0 { format!("-{out}") } else { out }
}

/// What a goal compares with, in words.
pub fn against(report: &Report, goal: &Goal) -> String {
    match &goal.against {
        Against::Nothing => String::new(),
        Against::Row(id) => id.clone(),
        Against::Family(family) => report.first(*family).map_or_else(
            || match family {
                Family::Kernel => "kernel".to_owned(),
                Family::FuseOverlayfs2 => "fo-2".to_owned(),
                other => format!("{other:?}"),
            },
            str::to_owned,
        ),
    }
}

/// A goal in words, as `≤ 1.1 × kernel`.
pub fn goal_text(report: &Report, goal: &Goal, unit: &str) -> String {
    let other = against(report, goal);
    let limit = number_short(goal.at_most);
    if other.is_empty() {
        format!("≤ {limit} {unit}")
    } else {
        format!("≤ {limit} × {other}")
    }
}

/// A limit as it would be written by hand.
fn number_short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `met`, `missed`, or that it is not known.
pub fn verdict_word(verdict: &Verdict) -> &'static str {
    match verdict.met {
        Some(true) => "met",
        Some(false) => "missed",
        None => "not measured",
    }
}

/// When, where, and on what.
pub fn provenance(report: &Report) -> String {
    let machine = &report.machine;
    let rounds = report
        .rows
        .iter()
        .flat_map(|row| &row.cells)
        .map(|cell| cell.samples.len());
    let (least, most) = rounds
        .filter(|n| *n > 0)
        .fold((usize::MAX, 0), |(least, most), n| {
            (least.min(n), most.max(n))
        });
    let rounds = match (least, most) {
        (_, 0) => "nothing measured".to_owned(),
        (a, b) if a == b => format!("medians of {a}"),
        (a, b) => format!("medians of {a} to {b}"),
    };
    format!(
        "{}, Linux {}, {} × {}, {} MiB of memory, {}, {rounds}{}",
        report.date.get(..10).unwrap_or(&report.date),
        machine.kernel,
        machine.cpus,
        machine.cpu,
        thousands(machine.memory_mib as f64),
        machine.file_system,
        if report.quick {
            ", quick (small data)"
        } else {
            ""
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_all_before_the_point() {
        let cases = [
            (0.0, "0"),
            (0.001_234, "0.0012"),
            (0.5, "0.50"),
            (1.236, "1.24"),
            (12.34, "12.3"),
            (99.96, "100"),
            (1_234_567.0, "1,234,567"),
            (-1234.4, "-1,234"),
            (f64::NAN, "–"),
            (0.000_001, "1.0e-6"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn goals_read_as_one_would_write_them() {
        let report = crate::model::example();
        let text = |goal: &Goal| goal_text(&report, goal, "MiB");
        assert_eq!(text(&Goal::kernel(1.1)), "≤ 1.1 × kernel");
        assert_eq!(text(&Goal::peer(0.25)), "≤ 0.25 × fo-2");
        assert_eq!(text(&Goal::row("stat", 3.0)), "≤ 3 × stat");
        assert_eq!(text(&Goal::limit(10.0)), "≤ 10 MiB");
    }

    #[test]
    fn the_provenance_tells_date_and_machine() {
        let line = provenance(&crate::model::example());
        assert!(
            line.starts_with("2026-01-02, Linux 6.18, 2 × A <CPU>, 1,024 MiB"),
            "{line}"
        );
        assert!(line.contains("medians of 1 to 3"), "{line}");
    }
}
