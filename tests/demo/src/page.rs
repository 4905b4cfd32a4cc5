//! How the demo looks: numbered headings, short lines, aligned tables; colour only on a terminal that wants it.

use std::cell::Cell;
use std::env;
use std::io::IsTerminal;

/// The page being written to standard output.
pub struct Page {
    is_coloured: bool,
    chapter: u32,
    failures: Cell<u32>,
}

impl Page {
    /// Coloured on a terminal, unless `NO_COLOR` is set.
    pub fn open(title: &str, subtitle: &str) -> Page {
        let is_coloured = std::io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        let page = Page { is_coloured, chapter: 0, failures: Cell::new(0) };
        println!("\n{}   {}", page.style("1", title), page.style("2", subtitle));
        page
    }

    /// A numbered heading.
    pub fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        println!("\n{}", self.style("1;36", &format!("{}  {title}", self.chapter)));
    }

    /// A line of text under the heading.
    pub fn say(&self, text: impl AsRef<str>) {
        println!("{}", format!("   {}", text.as_ref()).trim_end());
    }

    /// A line that matters less.
    pub fn remark(&self, text: impl AsRef<str>) {
        println!("   {}", self.style("2", text.as_ref()));
    }

    /// A line whose truth was checked. One that is not good is remembered.
    pub fn verdict(&self, is_good: bool, text: impl AsRef<str>) {
        self.failures.update(|failures| failures + u32::from(!is_good));
        let mark = if is_good { self.style("32", "✓") } else { self.style("31", "✗") };
        println!("   {mark} {}", text.as_ref());
    }

    /// Verdicts that were not good.
    pub fn failures(&self) -> u32 {
        self.failures.get()
    }

    /// A table; the first row is its heading.
    pub fn table(&self, rows: &[Vec<String>]) {
        let lines = align(rows);
        for (number, line) in lines.iter().enumerate() {
            if number == 0 { self.remark(line) } else { self.say(line) }
        }
    }

    fn style(&self, code: &str, text: &str) -> String {
        if self.is_coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The cell of a number that there is not.
pub const NONE: &str = "–";

/// Columns as wide as their widest cell; columns of numbers to the right.
fn align(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let is_number = |cell: &str| cell == NONE || cell.parse::<f64>().is_ok();
    let is_numeric = |column: usize| rows.iter().skip(1).filter_map(|row| row.get(column)).all(|cell| is_number(cell));
    let layout: Vec<(usize, bool)> =
        (0..columns).map(|column| (width(column), is_numeric(column) && rows.len() > 1)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&layout).map(|(cell, (width, to_right))| {
            let padding = " ".repeat(width - cell.chars().count());
            if *to_right { format!("{padding}{cell}") } else { format!("{cell}{padding}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A row of a table.
#[macro_export]
macro_rules! row {
    ($($cell:expr),* $(,)?) => { vec![$($cell.to_string()),*] };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let rows = [row!["who", "connections", "path"], row!["frontend", 7, "a → b"], row!["db", 120, "b"]];
        assert_eq!(
            align(&rows),
            ["who       connections  path", "frontend            7  a → b", "db                120  b"]
        );
    }

    #[test]
    fn numbers_with_and_without_a_point_and_missing_ones_stand_to_the_right() {
        let rows = [row!["a"], row!["10"], row!["1.5"], row![NONE]];
        assert_eq!(align(&rows), ["  a", " 10", "1.5", "  –"]);
    }

    #[test]
    fn verdicts_that_fail_are_counted() {
        let page = Page { is_coloured: false, chapter: 0, failures: Cell::new(0) };
        page.verdict(true, "good");
        assert_eq!(page.failures(), 0);
        page.verdict(false, "bad");
        assert_eq!(page.failures(), 1);
    }

    #[test]
    fn addresses_are_not_numbers_and_short_rows_are_fine() {
        let rows = [row!["address", "x"], row!["10.0.0.1:80"], row!["10.0.0.222:8080", "y"]];
        assert_eq!(align(&rows)[1], "10.0.0.1:80");
        assert_eq!(align(&[]), Vec::<String>::new());
    }
}
