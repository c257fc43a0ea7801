//! The table of the results.

use crate::numbers::grouped;
use crate::train::Outcome;

/// Returns a table with one line per optimizer, and notes below it.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let header = [
        "optimizer",
        "test accuracy (%)",
        "final loss",
        "state (bytes)",
        "step (µs)",
        "parameters",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(outcomes.iter().map(|outcome| {
        [
            outcome.name.to_owned(),
            format!("{:.2}", 100.0 * outcome.accuracy),
            format!("{:.5}", outcome.final_loss),
            grouped(outcome.state_bytes),
            format!("{:.0}", 1e6 * outcome.step_time.as_secs_f64()),
            format!("{:016x}", outcome.checksum),
        ]
    }));
    let mut text = aligned(&rows);
    text += "\nfinal loss: mean over the training images; step: median time of the optimizer alone\n\
         parameters: a checksum of their bits; a resumed run ends with the same one\n";
    let eight_bit = outcomes.iter().map(|o| &o.eight_bit[..]);
    let mut eight_bit: Vec<&[String]> = eight_bit.filter(|names| !names.is_empty()).collect();
    eight_bit.dedup();
    for names in eight_bit {
        let names = names.join(" and ");
        text += &format!("8-bit state: {names}; smaller parameters keep 32 bits\n");
    }
    for outcome in outcomes {
        if let Some(report) = &outcome.paging {
            text += &format!("\n{}, after its last step\n{report}\n", outcome.name);
        }
    }
    text
}

/// Formats the rows of a table: the first column is aligned to the left, the others to the right. A rule
/// follows the first row.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("{cell:width$}"),
                _ => format!("   {cell:>width$}"),
            };
        }
        text += "\n";
        if index == 0 {
            text += &"-".repeat(widths.iter().sum::<usize>() + 3 * (N - 1));
            text += "\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["name", "µs"], ["a", "1"], ["b", "1,000"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            aligned(&rows),
            "name      µs\n------------\na          1\nb      1,000\n"
        );
    }
}
