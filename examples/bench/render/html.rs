//! One page that needs nothing else: no script, no font, no picture from elsewhere.

use super::svg::{self, Bar, escape};
use super::{against, goal_text, number, provenance, verdict_word};
use crate::model::{Cell, Family, Report, Row};

const STYLE: &str = "\
:root { color-scheme: light dark; --back: #fff; --fore: #1b1f24; --soft: #5b6470; --line: #d6dae0; \
--bare: #9aa4b2; --kernel: #4c78a8; --rovl: #2f9e5b; --fo2: #d9822b; --fo1: #b5651d; --other: #8e5bb5; \
--good: #1a7f37; --bad: #c1272d }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --fore: #e3e7ec; --soft: #9aa4b2; --line: #343b45; \
--bare: #6c7683; --kernel: #6fa0d6; --rovl: #45c47a; --fo2: #f0a050; --fo1: #cc8844; --other: #b48ad9; \
--good: #56d37c; --bad: #ff7b72 } }
body { background: var(--back); color: var(--fore); font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; \
max-width: 76rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; border-bottom: 1px solid var(--line); margin-top: 2.2rem } \
h3 { font-size: 1rem; margin: 1.6rem 0 0.2rem }
p, .soft { color: var(--soft) } .wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } \
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap } \
th:first-child, td:first-child { text-align: left }
.met { color: var(--good) } .missed { color: var(--bad); font-weight: 600 }
svg { max-width: 100%; height: auto; font: 13px system-ui, sans-serif } svg text { fill: var(--fore) } \
svg .spread { stroke: var(--fore); stroke-width: 1.5; opacity: 0.6 }
rect.bare { fill: var(--bare) } rect.kernel { fill: var(--kernel) } rect.rovl { fill: var(--rovl) } \
rect.fo2 { fill: var(--fo2) } rect.fo1 { fill: var(--fo1) } rect.other { fill: var(--other) }
";

/// The page.
pub fn render(report: &Report) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>rovl: measurements</title><style>\n{STYLE}</style></head>\n<body>\n\
         <h1>rovl beside other overlay file systems</h1>\n<p>{}.</p>\n",
        escape(&provenance(report))
    );
    out.push_str(
        "<p>Less is better everywhere. Bars are medians; the line on a bar goes from the least to the greatest \
         sample. The same work runs on each target in turn, in a rotating order.</p>\n",
    );
    targets(&mut out, report);
    goals(&mut out, report);
    let mut group = "";
    for row in &report.rows {
        if row.group != group {
            group = &row.group;
            out.push_str(&format!("<h2>{}</h2>\n", escape(group)));
        }
        section(&mut out, report, row);
    }
    out.push_str("</body></html>\n");
    out
}

fn class(family: Family) -> &'static str {
    match family {
        Family::Bare => "bare",
        Family::Kernel => "kernel",
        Family::Rovl => "rovl",
        Family::FuseOverlayfs2 => "fo2",
        Family::FuseOverlayfs1 => "fo1",
        Family::Other => "other",
    }
}

fn targets(out: &mut String, report: &Report) {
    out.push_str(
        "<div class=\"wide\"><table><tr><th>target</th><th>version</th><th>command</th></tr>\n",
    );
    for target in &report.targets {
        let refused = target.refused.as_deref().map_or(String::new(), |why| {
            format!(" <span class=\"missed\">refused: {}</span>", escape(why))
        });
        out.push_str(&format!(
            "<tr><td>{}{refused}</td><td>{}</td><td><code>{}</code></td></tr>\n",
            escape(&target.name),
            escape(&target.version),
            escape(&target.command)
        ));
    }
    out.push_str("</table></div>\n");
}

fn goals(out: &mut String, report: &Report) {
    let with_goals: Vec<&Row> = report
        .rows
        .iter()
        .filter(|r| !r.verdicts.is_empty())
        .collect();
    if with_goals.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Goals</h2>\n<div class=\"wide\"><table><tr><th>work</th><th>mode</th><th>goal</th>\
         <th>measured</th><th>requests per operation</th><th></th></tr>\n",
    );
    for row in with_goals {
        for verdict in &row.verdicts {
            let word = verdict_word(verdict);
            let requests = row.cell(&verdict.target).and_then(Cell::requests);
            out.push_str(&format!(
                "<tr><td><a href=\"#{id}\">{}</a></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
                 <td class=\"{}\">{word}</td></tr>\n",
                escape(&row.title),
                escape(&verdict.target),
                escape(&goal_text(report, &verdict.goal, row.unit.symbol())),
                verdict.value.map_or("–".to_owned(), number),
                requests.map_or("–".to_owned(), number),
                word.replace(' ', "-"),
                id = escape(&row.id),
            ));
        }
    }
    out.push_str("</table></div>\n");
}

fn section(out: &mut String, report: &Report, row: &Row) {
    let unit = row.unit.symbol();
    let on = row
        .file_system
        .as_deref()
        .map_or(String::new(), |fs| format!(", on {fs}"));
    out.push_str(&format!(
        "<h3 id=\"{}\">{}{} <span class=\"soft\">{unit}</span></h3>\n",
        escape(&row.id),
        escape(&row.title),
        escape(&on)
    ));
    let bars: Vec<Bar<'_>> = report
        .measured()
        .filter_map(|target| {
            let summary = row.cell(&target.name)?.summary?;
            Some(Bar {
                name: &target.name,
                class: class(target.family),
                value: summary.median,
                low: summary.min,
                high: summary.max,
            })
        })
        .collect();
    if !bars.is_empty() {
        out.push_str(&svg::bars(&row.title, unit, &bars));
        out.push('\n');
    }
    details(out, report, row);
}

fn details(out: &mut String, report: &Report, row: &Row) {
    let references = [Family::Bare, Family::Kernel, Family::FuseOverlayfs2];
    let references: Vec<&str> = references
        .into_iter()
        .filter_map(|f| report.first(f))
        .collect();
    out.push_str("<details><summary class=\"soft\">figures</summary><div class=\"wide\"><table><tr><th>target</th>");
    out.push_str(&format!(
        "<th>median, {}</th><th>quartiles</th><th>least–greatest</th><th>samples</th>",
        row.unit.symbol()
    ));
    for name in &references {
        out.push_str(&format!("<th>÷ {}</th>", escape(name)));
    }
    out.push_str(&format!(
        "<th>daemon, MiB</th><th>daemon, ms</th><th>requests per {}</th></tr>\n",
        escape(&row.operation)
    ));
    for cell in &row.cells {
        out.push_str(&format!("<tr><td>{}</td>", escape(&cell.target)));
        cell_figures(out, cell, &references);
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div></details>\n");
    for goal in row.verdicts.iter().filter(|v| v.met == Some(false)) {
        out.push_str(&format!(
            "<p><span class=\"missed\">missed</span> by {}: {} of {}, wanted {}.</p>\n",
            escape(&goal.target),
            goal.value.map_or("–".to_owned(), number),
            escape(&against(report, &goal.goal)),
            escape(&goal_text(report, &goal.goal, row.unit.symbol())),
        ));
    }
}

fn cell_figures(out: &mut String, cell: &Cell, references: &[&str]) {
    let Some(s) = cell.summary else {
        let why = cell.error.as_deref().unwrap_or("not measured");
        out.push_str(&format!(
            "<td colspan=\"{}\">{}</td>",
            7 + references.len(),
            escape(why)
        ));
        return;
    };
    out.push_str(&format!(
        "<td>{}</td><td>{}–{}</td><td>{}–{}</td><td>{}</td>",
        number(s.median),
        number(s.q1),
        number(s.q3),
        number(s.min),
        number(s.max),
        s.n
    ));
    for name in references {
        let ratio = cell
            .ratios
            .get(*name)
            .copied()
            .map_or("–".to_owned(), number);
        out.push_str(&format!("<td>{ratio}</td>"));
    }
    let optional = |value: Option<f64>| value.map_or("–".to_owned(), number);
    let kinds = cell
        .requests_per_operation
        .as_ref()
        .map_or("–".to_owned(), |kinds| {
            let each = kinds
                .iter()
                .map(|(kind, n)| format!("{kind} {}", number(*n)));
            let each: Vec<String> = each.collect();
            if each.is_empty() {
                "0".to_owned()
            } else {
                each.join(", ")
            }
        });
    out.push_str(&format!(
        "<td>{}</td><td>{}</td><td>{}</td>",
        optional(cell.daemon_rss_mib),
        optional(cell.daemon_cpu_ms),
        escape(&kinds)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_target_is_on_the_page() {
        let report = crate::model::example();
        let page = render(&report);
        for row in &report.rows {
            assert!(
                page.contains(&format!("<h3 id=\"{}\">", row.id)),
                "{}",
                row.id
            );
            assert!(page.contains(&escape(&row.title)), "{}", row.title);
        }
        for target in &report.targets {
            assert!(
                page.contains(&format!("<td>{}", escape(&target.name))),
                "{}",
                target.name
            );
        }
        assert!(page.contains("lookup 2.00, read 0.50"), "{page}");
        assert!(page.contains("mount: &lt;refused&gt; &amp; gone"), "{page}");
    }

    #[test]
    fn the_page_is_whole_and_alone() {
        let page = render(&crate::model::example());
        assert!(page.contains("prefers-color-scheme: dark"));
        for forbidden in ["<script", "src=", "@import", "url("] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn a_report_without_rows_is_a_page_too() {
        let mut report = crate::model::example();
        report.rows.clear();
        assert!(render(&report).ends_with("</body></html>\n"));
    }
}
