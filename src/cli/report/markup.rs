//! Marked-up text: the only place of the report that writes a `<`. What comes from outside can only become text or the value of an
//! attribute, and is escaped there.

/// A piece of HTML or SVG.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Markup(String);

/// Elements that have no end.
const VOID: [&str; 2] = ["meta", "br"];

/// `text` as it is, whatever stands in it.
pub(super) fn text(text: impl AsRef<str>) -> Markup {
    let mut escaped = String::new();
    escape(text.as_ref(), &mut escaped);
    Markup(escaped)
}

/// An element with its attributes and what stands in it.
pub(super) fn tag(
    name: &'static str,
    attributes: &[(&'static str, &str)],
    children: impl IntoIterator<Item = Markup>,
) -> Markup {
    let mut out = format!("<{name}");
    for (name, value) in attributes {
        out += &format!(" {name}=\"");
        escape(value, &mut out);
        out.push('"');
    }
    out.push('>');
    if VOID.contains(&name) {
        return Markup(out);
    }
    children.into_iter().for_each(|child| out += &child.0);
    out += &format!("</{name}>");
    Markup(out)
}

/// An element of a class with nothing but text in it.
pub(super) fn words(name: &'static str, class: &str, words: impl AsRef<str>) -> Markup {
    let attributes: &[_] = if class.is_empty() { &[] } else { &[("class", class)] };
    tag(name, attributes, [text(words)])
}

/// A whole page with the style sheet of the report. It may load nothing and run nothing, which its own policy says to the browser too.
pub(super) fn page(title: &str, body: impl IntoIterator<Item = Markup>) -> String {
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    let head = [
        tag("meta", &[("charset", "utf-8")], []),
        tag("meta", &[("http-equiv", "Content-Security-Policy"), ("content", policy)], []),
        tag("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")], []),
        tag("meta", &[("name", "color-scheme"), ("content", "light dark")], []),
        words("title", "", title),
        tag("style", &[], [Markup(include_str!("report.css").to_owned())]),
    ];
    let page = tag("html", &[("lang", "en")], [tag("head", &[], head), tag("body", &[], body)]);
    format!("<!doctype html>\n{}\n", page.0)
}

fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(character),
        }
    }
}

impl Markup {
    /// As it is written.
    #[cfg(test)]
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let hostile = "</style><script>alert('1')</script>&\"";
        let found = tag("p", &[("title", hostile)], [text(hostile)]);
        let safe = "&lt;/style&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;";
        assert_eq!(found.as_str(), format!("<p title=\"{safe}\">{safe}</p>"));
        let page = page(hostile, [words("h1", "", hostile)]);
        assert!(!page.contains("<script") && page.matches("</style>").count() == 1);
    }
}
