//! One plot: a bar for each target, on a logarithmic scale where values differ much.

use super::number;

/// Height of a bar with its gap, pixels.
const STEP: f64 = 22.0;
/// Where bars begin.
const LEFT: f64 = 190.0;
/// Length of the longest bar.
const LENGTH: f64 = 380.0;
/// Room for the value behind it.
const RIGHT: f64 = 150.0;

/// What a bar shows.
pub struct Bar<'a> {
    /// The target's name.
    pub name: &'a str,
    /// The style class: one for each family.
    pub class: &'static str,
    /// The median, and the least and greatest sample.
    pub value: f64,
    /// The least sample.
    pub low: f64,
    /// The greatest sample.
    pub high: f64,
}

/// Text for an element or an attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML at all.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// From a value to pixels.
struct Scale {
    log: bool,
    least: f64,
    most: f64,
}

impl Scale {
    fn new(bars: &[Bar<'_>]) -> Scale {
        let positive = || {
            bars.iter()
                .flat_map(|b| [b.low, b.value, b.high])
                .filter(|v| *v > 0.0)
        };
        let most = positive().fold(0.0, f64::max);
        let least = positive().fold(f64::INFINITY, f64::min);
        let log = least.is_finite() && most / least > 20.0;
        Scale {
            log,
            least: least / 2.0,
            most,
        }
    }

    fn at(&self, value: f64) -> f64 {
        if value <= 0.0 || self.most <= 0.0 {
            return 0.0;
        }
        let part = if self.log {
            (value / self.least).ln() / (self.most / self.least).ln()
        } else {
            value / self.most
        };
        part.clamp(0.0, 1.0) * LENGTH
    }
}

/// An `<svg>` element that says in words what it shows.
pub fn bars(title: &str, unit: &str, bars: &[Bar<'_>]) -> String {
    let scale = Scale::new(bars);
    let (width, height) = (LEFT + LENGTH + RIGHT, bars.len() as f64 * STEP + 8.0);
    let mut out = format!(
        "<svg role=\"img\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{}, {}{}</title>",
        escape(title),
        escape(unit),
        if scale.log { ", logarithmic" } else { "" }
    );
    for (at, bar) in bars.iter().enumerate() {
        let top = at as f64 * STEP + 4.0;
        let (x, low, high) = (scale.at(bar.value), scale.at(bar.low), scale.at(bar.high));
        let middle = top + STEP / 2.0 - 2.0;
        out.push_str(&format!(
            "<text class=\"name\" x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{}\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{x:.1}\" height=\"16\"/>\
             <line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{} {}</text>",
            LEFT - 8.0,
            top + 13.0,
            escape(bar.name),
            bar.class,
            LEFT + low,
            LEFT + high,
            LEFT + high.max(x) + 8.0,
            top + 13.0,
            number(bar.value),
            escape(unit),
        ));
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(value: f64) -> Bar<'static> {
        Bar {
            name: "a",
            class: "bare",
            value,
            low: value,
            high: value,
        }
    }

    #[test]
    fn the_scale_is_linear_where_values_are_near() {
        let scale = Scale::new(&[bar(1.0), bar(4.0)]);
        assert!(!scale.log);
        assert_eq!(scale.at(4.0), LENGTH);
        assert_eq!(scale.at(1.0), LENGTH / 4.0);
    }

    #[test]
    fn the_scale_is_logarithmic_where_they_are_not() {
        let scale = Scale::new(&[bar(1.0), bar(400.0)]);
        assert!(scale.log);
        assert_eq!(scale.at(400.0), LENGTH);
        assert!(scale.at(1.0) > 0.0);
    }

    #[test]
    fn nothing_and_zero_have_no_length() {
        assert_eq!(Scale::new(&[]).at(1.0), 0.0);
        assert_eq!(Scale::new(&[bar(0.0)]).at(0.0), 0.0);
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            escape("<a & \"b\">\u{1}"),
            "&lt;a &amp; &quot;b&quot;&gt;\u{fffd}"
        );
    }
}
