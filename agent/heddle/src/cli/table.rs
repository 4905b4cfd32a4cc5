//! Columns for people: as wide as their widest cell, a heading, two spaces between.

/// Renders rows under headings. Empty cells show as `-`.
#[must_use]
pub fn render(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count().max(1));
        }
    }
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(|&h| h.to_owned()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let cell = if cell.is_empty() { "-" } else { cell };
            line.push_str(cell);
            line.push_str(&" ".repeat(width.saturating_sub(cell.chars().count()) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), String::new()], vec!["longer".into(), "x".into()]];
        assert_eq!(render(&["NAME", "B"], &rows), "NAME    B\na       -\nlonger  x\n");
    }
}
