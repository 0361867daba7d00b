//! `transitions.txt`, which is also in the module's documentation, as a table: (section, row, column) → cell.

use std::collections::BTreeMap;

pub type Cells = BTreeMap<(String, String), String>;

/// The sections by their names (`verbs`, `reports`, `never`, `always`), each with its cells by (row, column).
pub fn sections() -> BTreeMap<String, Cells> {
    let text = include_str!("../../src/engine/state/transitions.txt");
    let mut sections: BTreeMap<String, Cells> = BTreeMap::new();
    let mut heading: Vec<&str> = Vec::new();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => heading.clear(),
            _ if heading.is_empty() => heading = words,
            [row, cells @ ..] => {
                assert_eq!(cells.len() + 1, heading.len(), "{line}");
                let section = sections.entry(heading[0].to_owned()).or_default();
                for (column, cell) in heading[1..].iter().zip(cells) {
                    let before = section.insert((row.to_string(), column.to_string()), cell.to_string());
                    assert_eq!(before, None, "{row} is there twice");
                }
            }
        }
    }
    sections
}

/// The rows of a section.
pub fn rows(cells: &Cells) -> Vec<String> {
    let mut rows: Vec<String> = cells.keys().map(|(row, _)| row.clone()).collect();
    rows.dedup();
    rows
}

/// The columns of a section.
pub fn columns(cells: &Cells) -> Vec<String> {
    let mut columns: Vec<String> = cells.keys().map(|(_, column)| column.clone()).collect();
    columns.sort();
    columns.dedup();
    columns
}
