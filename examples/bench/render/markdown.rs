//! The README's table.

use super::{goal_text, number, provenance, thousands};
use crate::model::{Cell, Report, Row};

/// Date and machine, one line for each row, verdicts, and what was refused.
pub fn render(report: &Report) -> String {
    table(report, &|_| true)
}

/// The same of the rows in which rovl is held against something.
pub fn render_goals(report: &Report) -> String {
    table(report, &|row| !row.goals.is_empty())
}

fn table(report: &Report, shown: &dyn Fn(&Row) -> bool) -> String {
    let names: Vec<&str> = report.measured().map(|t| t.name.as_str()).collect();
    let mut out = format!("`tools/bench`, {}.\n\n", escape(&provenance(report)));
    let mut head = vec!["work".to_owned()];
    head.extend(names.iter().map(|n| escape(n)));
    head.push("requests ¹".to_owned());
    head.push("goals of rovl ²".to_owned());
    out.push_str(&format!("| {} |\n", head.join(" | ")));
    let right = "---:|".repeat(names.len() + 1);
    out.push_str(&format!("|---|{right}---|\n"));
    for row in report.rows.iter().filter(|row| shown(row)) {
        out.push_str(&format!("| {} |\n", cells(report, row, &names).join(" | ")));
    }
    out.push_str(
        "\n¹ That rovl's daemon gets for one operation (a file, an entry, a block; see the JSON).\n\
         ² rovl's value divided by the other's, or the value; **bold**: missed.\n",
    );
    for target in report.targets.iter().filter(|t| t.refused.is_some()) {
        let why = target.refused.as_deref().unwrap_or_default();
        out.push_str(&format!(
            "\n{}: refused: {}\n",
            escape(&target.name),
            escape(why)
        ));
    }
    let total = report
        .rows
        .iter()
        .flat_map(|row| &row.cells)
        .filter(|c| c.error.is_some())
        .count();
    if total > 0 {
        out.push_str(&format!(
            "\n{} cells failed; the JSON says why.\n",
            thousands(total as f64)
        ));
    }
    out
}

fn cells(report: &Report, row: &Row, names: &[&str]) -> Vec<String> {
    let mut cells = vec![escape(&format!("{}, {}", row.title, row.unit.symbol()))];
    cells.extend(names.iter().map(|name| match row.cell(name) {
        Some(Cell {
            summary: Some(summary),
            ..
        }) => number(summary.median),
        Some(Cell { error: Some(_), .. }) => "failed".to_owned(),
        _ => "–".to_owned(),
    }));
    let rovl = report.first(crate::model::Family::Rovl);
    let requests = rovl
        .and_then(|name| row.cell(name))
        .and_then(Cell::requests);
    cells.push(requests.map_or("–".to_owned(), number));
    let own = row
        .verdicts
        .iter()
        .filter(|v| Some(v.target.as_str()) == rovl);
    let goals: Vec<String> = own
        .map(|v| {
            let value = v.value.map_or("–".to_owned(), number);
            let mark = if v.met == Some(false) { "**" } else { "" };
            format!(
                "{mark}{value}{mark} ({})",
                goal_text(report, &v.goal, row.unit.symbol())
            )
        })
        .collect();
    cells.push(escape(&goals.join(", ")));
    cells
}

/// Text that Markdown takes as it is, in a cell of a table.
fn escape(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_has_as_many_cells() {
        let text = render(&crate::model::example());
        let widths: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count())
            .collect();
        assert_eq!(widths, [8; 4], "{text}");
    }

    #[test]
    fn goals_can_be_shown_alone() {
        let report = crate::model::example();
        let goals = report.rows.iter().filter(|row| !row.goals.is_empty());
        let lines = |text: &str| text.lines().filter(|line| line.starts_with('|')).count();
        assert_eq!(lines(&render_goals(&report)), goals.count() + 2);
        assert_eq!(lines(&render(&report)), report.rows.len() + 2);
    }

    #[test]
    fn date_machine_and_verdicts_are_in_it() {
        let text = render(&crate::model::example());
        assert!(
            text.starts_with("`tools/bench`, 2026-01-02, Linux 6.18, 2 × A &lt;CPU>"),
            "{text}"
        );
        assert!(
            text.contains("**1.50** (≤ 1.1 × kernel), 0.15 (≤ 0.3 × fo-2)"),
            "{text}"
        );
        assert!(
            text.contains("rovl:passthrough=on: refused: not &lt;yet>"),
            "{text}"
        );
    }

    #[test]
    fn a_bar_does_not_end_a_cell() {
        assert_eq!(escape("a|b\nc"), "a\\|b c");
    }
}
