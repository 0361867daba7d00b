//! Aligned columns: a heading, then one line an object, so that awk and sort work.

use super::one_line;
use std::fmt::Write;

/// A table in the making.
#[derive(Debug, Clone)]
pub struct Table {
    widths: Vec<usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this heading.
    pub fn new(heading: &[&str]) -> Table {
        let mut table = Table { widths: vec![0; heading.len()], rows: Vec::new() };
        table.row(heading.iter().map(|h| (*h).to_owned()));
        table
    }

    /// Adds a row. An empty or missing cell becomes `-`, so that every row has as many words as the heading (if no cell
    /// has spaces: only the last may).
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) -> &mut Table {
        let filled = |cell: String| if cell.is_empty() { "-".to_owned() } else { one_line(&cell).into_owned() };
        let all = cells.into_iter().chain(std::iter::repeat_with(String::new));
        let cells: Vec<String> = all.map(filled).take(self.widths.len()).collect();
        for (width, cell) in self.widths.iter_mut().zip(&cells) {
            *width = (*width).max(cell.chars().count());
        }
        self.rows.push(cells);
        self
    }

    /// The text: columns two spaces apart, nothing behind the last.
    pub fn print(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let mut pad = 0;
            for (cell, width) in row.iter().zip(&self.widths) {
                // Writing to a String never fails.
                let _ = write!(text, "{:pad$}{cell}", "");
                pad = width.saturating_sub(cell.chars().count()) + 2;
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let mut table = super::Table::new(&["id", "name", "state"]);
        table.row(["1", "web", "running"].map(str::to_owned)).row(["42", "", "stopped"].map(str::to_owned));
        assert_eq!(table.print(), "id  name  state\n1   web   running\n42  -     stopped\n");
        table.row(["4\n2".to_owned()]).row(["a", "ä", "c", "d"].map(str::to_owned));
        assert!(table.print().ends_with("\n4 2  -     -\na    ä     c\n"), "{}", table.print());
    }
}
