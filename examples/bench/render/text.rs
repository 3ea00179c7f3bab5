//! The report on a terminal.

use std::fmt::Write as _;

use super::{against, goal_text, number, provenance, verdict_word};
use crate::model::{Cell, Report, Row, Verdict};

/// Everything, as aligned tables.
pub fn render(report: &Report) -> String {
    let mut out = format!("{}\n", provenance(report));
    for target in report.targets.iter().filter(|t| t.refused.is_some()) {
        let why = target.refused.as_deref().unwrap_or_default();
        line(
            &mut out,
            &format!("{}: refuses to mount: {why}", target.name),
        );
    }
    let mut group = "";
    let mut rows: Vec<&Row> = Vec::new();
    for row in &report.rows {
        if row.group != group {
            flush(&mut out, report, group, &mut rows);
            group = &row.group;
        }
        rows.push(row);
    }
    flush(&mut out, report, group, &mut rows);
    daemons(&mut out, report);
    verdicts(&mut out, report);
    failures(&mut out, report);
    out
}

/// Writing to a String can't fail.
fn line(out: &mut String, text: &str) {
    let written = writeln!(out, "{text}");
    debug_assert!(written.is_ok());
}

/// Median and spread, as `1.24 ±5%`: half the distance of the quartiles, in per cent of the median.
fn value(cell: Option<&Cell>) -> String {
    let Some(cell) = cell else {
        return "–".to_owned();
    };
    match cell.summary {
        Some(s) if s.n > 1 && s.median > 0.0 => {
            let spread = (s.q3 - s.q1) / 2.0 / s.median * 100.0;
            format!("{} ±{spread:.0}%", number(s.median))
        }
        Some(s) => number(s.median),
        None if cell.error.is_some() => "failed".to_owned(),
        None => "–".to_owned(),
    }
}

fn flush(out: &mut String, report: &Report, group: &str, rows: &mut Vec<&Row>) {
    if rows.is_empty() {
        return;
    }
    let names: Vec<&str> = report.measured().map(|t| t.name.as_str()).collect();
    let rovl: Vec<&str> = rovl_modes(report);
    let mut table = vec![vec![group.to_owned(), String::new()]];
    if let Some(head) = table.first_mut() {
        head.extend(names.iter().map(|n| (*n).to_owned()));
        head.extend(rovl.iter().map(|n| format!("req/op {n}")));
        head.push("goals".to_owned());
    }
    for row in rows.drain(..) {
        let mut cells = vec![row.title.clone(), row.unit.symbol().to_owned()];
        cells.extend(names.iter().map(|name| value(row.cell(name))));
        cells.extend(rovl.iter().map(|name| {
            let requests = row.cell(name).and_then(Cell::requests);
            requests.map_or("–".to_owned(), number)
        }));
        cells.push(marks(report, row));
        table.push(cells);
    }
    line(out, "");
    align(out, &table);
}

fn rovl_modes(report: &Report) -> Vec<&str> {
    let modes = report
        .measured()
        .filter(|t| t.family == crate::model::Family::Rovl);
    modes.map(|t| t.name.as_str()).collect()
}

/// The verdicts of the first mode, as `kernel 1.05 ≤ 1.1 met`.
fn marks(report: &Report, row: &Row) -> String {
    let first = rovl_modes(report).first().copied().unwrap_or_default();
    let own = row.verdicts.iter().filter(|v| v.target == first);
    let words: Vec<String> = own
        .map(|v| {
            let value = v.value.map_or("–".to_owned(), number);
            let other = against(report, &v.goal);
            let text = format!(
                "{other} {value} ≤ {} {}",
                number(v.goal.at_most),
                verdict_word(v)
            );
            text.trim_start().to_owned()
        })
        .collect();
    words.join("; ")
}

/// First column to the left, the others to the right, the last one as it is.
fn align(out: &mut String, table: &[Vec<String>]) {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        let cells = table.iter().filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in table {
        let mut text = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            if at == 0 {
                text.push_str(&format!("{cell}{pad}"));
            } else if at + 1 == columns {
                text.push_str(&format!("  {cell}"));
            } else {
                text.push_str(&format!("  {pad}{cell}"));
            }
        }
        line(out, text.trim_end());
    }
}

fn daemons(out: &mut String, report: &Report) {
    let has_daemon = |name: &str| {
        let cells = report.rows.iter().filter_map(|row| row.cell(name));
        cells.into_iter().any(|cell| cell.daemon_rss_mib.is_some())
    };
    let names: Vec<&str> = report.measured().map(|t| t.name.as_str()).collect();
    let names: Vec<&str> = names.into_iter().filter(|n| has_daemon(n)).collect();
    if names.is_empty() {
        return;
    }
    let head = "Daemon after the work: memory, MiB / processor time of it, ms";
    let mut table = vec![vec![head.to_owned()]];
    if let Some(first) = table.first_mut() {
        first.extend(names.iter().map(|n| (*n).to_owned()));
        first.push(String::new());
    }
    for row in &report.rows {
        let mut cells = vec![row.title.clone()];
        cells.extend(names.iter().map(|name| {
            let cell = row.cell(name);
            let rss = cell
                .and_then(|c| c.daemon_rss_mib)
                .map_or("–".to_owned(), number);
            let cpu = cell
                .and_then(|c| c.daemon_cpu_ms)
                .map_or("–".to_owned(), number);
            format!("{rss} / {cpu}")
        }));
        cells.push(String::new());
        table.push(cells);
    }
    line(out, "");
    align(out, &table);
}

/// A verdict, as `kernel: 1.62 where ≤ 1.1 × kernel is asked`.
fn missed(report: &Report, row: &Row, verdict: &Verdict) -> String {
    let goal = goal_text(report, &verdict.goal, row.unit.symbol());
    let value = verdict.value.map_or("–".to_owned(), number);
    let requests = row.cell(&verdict.target).and_then(Cell::requests);
    let requests = requests.map_or(String::new(), |n| {
        format!(", {} requests for each {}", number(n), row.operation)
    });
    format!(
        "   {} {}: {value}, wanted {goal}{requests}",
        verdict.target, row.title
    )
}

fn verdicts(out: &mut String, report: &Report) {
    let all = || {
        report
            .rows
            .iter()
            .flat_map(|row| row.verdicts.iter().map(move |v| (row, v)))
    };
    if all().next().is_none() {
        return;
    }
    line(out, "");
    for mode in rovl_modes(report) {
        let own = || all().filter(|(_, v)| v.target == mode);
        let count = |met| own().filter(|(_, v)| v.met == met).count();
        let (met, missed, unknown) = (count(Some(true)), count(Some(false)), count(None));
        line(
            out,
            &format!("{mode}: {met} goals met, {missed} missed, {unknown} not measured"),
        );
    }
    for (row, verdict) in all().filter(|(_, v)| v.met == Some(false)) {
        line(out, &missed(report, row, verdict));
    }
}

fn failures(out: &mut String, report: &Report) {
    for row in &report.rows {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for cell in &row.cells {
            let Some(why) = cell.error.as_deref() else {
                continue;
            };
            match reasons.iter_mut().find(|(known, _)| *known == why) {
                Some((_, targets)) => targets.push(&cell.target),
                None => reasons.push((why, vec![&cell.target])),
            }
        }
        for (why, targets) in reasons {
            let text = format!("failed: {} on {}: {why}", row.title, targets.join(", "));
            line(out, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_shows_values_verdicts_and_failures() {
        let text = render(&crate::model::example());
        assert!(text.contains("3.00 ±17%"), "{text}");
        assert!(
            text.contains("kernel 1.50 ≤ 1.10 missed; fo-2 0.15 ≤ 0.30 met"),
            "{text}"
        );
        assert!(
            text.contains("rovl: 1 goals met, 3 missed, 1 not measured"),
            "{text}"
        );
        assert!(
            text.contains("failed: second <of> \"1,000\" & more on kernel: mount:"),
            "{text}"
        );
        assert!(
            text.contains("rovl:passthrough=on: refuses to mount: not <yet>"),
            "{text}"
        );
        assert!(text.contains("2.00 / 1.50"), "{text}");
    }

    #[test]
    fn columns_are_aligned() {
        let mut out = String::new();
        let table = [["ab", "c", "x"], ["a", "ccc", ""]];
        align(&mut out, &table.map(|row| row.map(str::to_owned).to_vec()));
        assert_eq!(out, "ab    c  x\na   ccc\n");
    }
}
