//! HTML with its plain text, and tables that give both. Whatever comes in as text is escaped.

/// Something to look at, as HTML and as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Html {
    html: String,
    text: String,
}

impl Html {
    /// A paragraph.
    pub fn paragraph(text: &str) -> Self {
        Self { html: format!("<p>{}</p>\n", escape(text)), text: format!("{text}\n") }
    }

    /// HTML that is already safe, with its text.
    pub(super) fn safe(html: String, text: String) -> Self {
        Self { html, text }
    }

    /// This, and below it the other.
    #[must_use]
    pub fn then(mut self, below: &Self) -> Self {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.html += &below.html;
        self.text += &below.text;
        self
    }

    /// The fragment.
    pub fn html(&self) -> &str {
        &self.html
    }

    /// The same for a terminal.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl super::Show for Html {
    fn show(&self) -> Html {
        self.clone()
    }
}

impl super::Show for Table {
    fn show(&self) -> Html {
        self.html()
    }
}

super::shown!(Html, Table);

/// Text as it stands in HTML, in elements and in attributes. Control characters, which HTML has no place for, become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A table being made; cells are text, or fragments that are already safe.
///
/// ```
/// use lapidary::notebook::Table;
/// let table = Table::new("concepts", &["concept", "F1"]).row(["quote".to_string(), "0.91".to_string()]);
/// assert!(table.html().text().contains("quote"));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    caption: String,
    head: Vec<String>,
    rows: Vec<Vec<Html>>,
}

impl Table {
    /// An empty one. The caption stands above it; an empty one is left out.
    pub fn new(caption: &str, head: &[&str]) -> Self {
        Self { caption: caption.into(), head: head.iter().map(|h| (*h).to_string()).collect(), rows: Vec::new() }
    }

    /// With one more row of text; missing cells stay empty, those too many are left out.
    #[must_use]
    pub fn row(self, cells: impl IntoIterator<Item = String>) -> Self {
        let cells: Vec<Html> = cells.into_iter().map(|text| Html { html: escape(&text), text }).collect();
        self.fragments(cells)
    }

    /// With one more row for each item.
    #[must_use]
    pub fn rows<T, C: IntoIterator<Item = String>>(self, items: impl IntoIterator<Item = T>, cells: impl Fn(T) -> C) -> Self {
        items.into_iter().fold(self, |table, item| table.row(cells(item)))
    }

    /// With one more row of fragments.
    #[must_use]
    pub(super) fn fragments(mut self, mut cells: Vec<Html>) -> Self {
        cells.resize(self.head.len(), Html::default());
        self.rows.push(cells);
        self
    }

    /// As HTML and text. Columns of numbers stand at the right.
    pub fn html(&self) -> Html {
        let numeric: Vec<bool> =
            (0..self.head.len()).map(|c| !self.rows.is_empty() && self.rows.iter().all(|r| is_number(&r[c].text))).collect();
        Html { html: self.as_html(&numeric), text: self.as_text(&numeric) }
    }

    fn as_html(&self, numeric: &[bool]) -> String {
        let side = |c: usize| if numeric[c] { "right" } else { "left" };
        let mut out = String::from("<table>");
        if !self.caption.is_empty() {
            out += &format!("<caption style=\"text-align:left;caption-side:top\">{}</caption>", escape(&self.caption));
        }
        if self.head.iter().any(|h| !h.is_empty()) {
            out += "<thead><tr>";
            for (c, head) in self.head.iter().enumerate() {
                out += &format!("<th style=\"text-align:{}\">{}</th>", side(c), escape(head));
            }
            out += "</tr></thead>";
        }
        out += "<tbody>";
        for row in &self.rows {
            out += "<tr>";
            for (c, cell) in row.iter().enumerate() {
                out += &format!("<td style=\"text-align:{}\">{}</td>", side(c), cell.html);
            }
            out += "</tr>\n";
        }
        out + "</tbody></table>\n"
    }

    fn as_text(&self, numeric: &[bool]) -> String {
        let line = |text: &str| text.replace('\n', "\u{23ce}");
        let wide = |c: usize| {
            let cells = self.rows.iter().map(|r| line(&r[c].text).chars().count());
            cells.chain([self.head[c].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(wide).collect();
        let write = |cells: Vec<String>| {
            let cells = cells.iter().enumerate().map(|(c, cell)| match numeric[c] {
                true => format!("{cell:>w$}", w = widths[c]),
                false => format!("{cell:<w$}", w = widths[c]),
            });
            format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
        };
        let mut out = if self.caption.is_empty() { String::new() } else { format!("{}\n", self.caption) };
        if self.head.iter().any(|h| !h.is_empty()) {
            out += &write(self.head.clone());
        }
        for row in &self.rows {
            out += &write(row.iter().map(|cell| line(&cell.text)).collect());
        }
        out
    }
}

fn is_number(text: &str) -> bool {
    text.is_empty() || text == "–" || text.chars().all(|c| c.is_ascii_digit() || ".,-+%e× ".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_in_is_escaped() {
        let table = Table::new("<b>&", &["<i>", "n"]).row(["<script>alert('x')</script>\0".into(), "1.5".into()]).row(["\"".into()]);
        let html = table.html();
        assert!(!html.html().contains("<script") && !html.html().contains("<i>") && !html.html().contains("<b>"), "{}", html.html());
        assert!(html.html().contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;\u{fffd}"));
        assert!(html.html().contains("<td style=\"text-align:right\">1.5</td>"));
        assert_eq!(html.html().matches("<td").count(), 4, "short rows are filled");
    }

    #[test]
    fn text_is_aligned() {
        let table = Table::new("", &["name", "n"]).rows([("a", 5), ("long", 12)], |(name, n)| [name.to_string(), n.to_string()]);
        assert_eq!(table.html().text(), "name   n\na      5\nlong  12\n");
        let both = Html::paragraph("first").then(&table.html());
        assert!(both.text().starts_with("first\n\nname"));
    }
}
