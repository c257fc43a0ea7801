//! The images: reads them from CSV, splits them into training and test images, and shifts them for training.

use crate::random::Random;
use anyhow::{Context, Error, Result, bail, ensure};
use ndarray::{Array2, ArrayView1, ArrayViewMut1, Axis, Zip};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Number of pixels of an image.
pub(crate) const PIXELS: usize = SIDE * SIDE;
/// The digits 0 to 9.
pub(crate) const CLASSES: usize = 10;

const SIDE: usize = 8;
const GREATEST_PIXEL: f32 = 16.0;
/// The minimum number of rows, so that there are enough to train and to test.
const FEWEST_ROWS: usize = 100;

/// Images and their labels.
#[derive(Clone, Debug)]
pub(crate) struct Digits {
    /// One row per image; pixels are in `[0, 1]`.
    pub(crate) images: Array2<f32>,
    /// The digit of each image.
    pub(crate) labels: Vec<usize>,
}

impl Digits {
    /// Reads a file with the header `label,p0,...,p63` and one line per image.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        File::open(path)
            .map_err(Error::from)
            .and_then(|file| Self::parse(BufReader::new(file)))
            .with_context(|| format!("cannot read the digits from {}", path.display()))
    }

    fn parse(text: impl BufRead) -> Result<Self> {
        let (mut pixels, mut labels, mut empty) = (Vec::new(), Vec::new(), true);
        for (index, line) in text.lines().enumerate() {
            let parsed = line.map_err(Error::from).and_then(|line| {
                if index == 0 {
                    return check_header(&line);
                }
                labels.push(parse_row(&line, &mut pixels)?);
                Ok(())
            });
            parsed.with_context(|| format!("line {}", index + 1))?;
            empty = false;
        }
        ensure!(!empty, "the file is empty");
        let rows = labels.len();
        ensure!(
            rows >= FEWEST_ROWS,
            "wanted at least {FEWEST_ROWS} images, found {rows}"
        );
        Ok(Digits {
            images: Array2::from_shape_vec((rows, PIXELS), pixels)?,
            labels,
        })
    }

    /// Splits the images at random: four fifths for training, and one fifth for the test.
    pub(crate) fn split(&self, random: &mut Random) -> (Digits, Digits) {
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        random.shuffle(&mut order);
        let (training, test) = order.split_at(order.len() * 4 / 5);
        (self.select(training), self.select(test))
    }

    /// Returns the images at these indices, in this order.
    pub(crate) fn select(&self, places: &[usize]) -> Digits {
        Digits {
            images: self.images.select(Axis(0), places),
            labels: places.iter().map(|&place| self.labels[place]).collect(),
        }
    }

    /// Returns the images, each shifted at random by up to half a pixel in both directions. As the network
    /// never sees the same image twice, it overfits less.
    pub(crate) fn jittered(mut self, random: &mut Random) -> Digits {
        let original = self.images.clone();
        Zip::from(self.images.rows_mut())
            .and(original.rows())
            .for_each(|shifted, image| {
                let mut amount = || random.uniform() - 0.5;
                shift(image, shifted, amount(), amount());
            });
        self
    }
}

fn check_header(line: &str) -> Result<()> {
    let label = std::iter::once("label".to_owned());
    let wanted = label.chain((0..PIXELS).map(|pixel| format!("p{pixel}")));
    ensure!(
        line.split(',').eq(wanted),
        "the header is not label,p0,...,p{}",
        PIXELS - 1
    );
    Ok(())
}

/// Appends the pixels of a line and returns its label.
fn parse_row(line: &str, pixels: &mut Vec<f32>) -> Result<usize> {
    let columns = line.split(',').count();
    ensure!(
        columns == 1 + PIXELS,
        "wanted {} columns, found {columns}",
        1 + PIXELS
    );
    let (label, rest) = line.split_once(',').unwrap_or_default();
    for (index, text) in rest.split(',').enumerate() {
        match text.trim().parse::<f32>() {
            Ok(pixel) if (0.0..=GREATEST_PIXEL).contains(&pixel) => {
                pixels.push(pixel / GREATEST_PIXEL);
            }
            _ => bail!("p{index} is {text:?}, wanted 0 to {GREATEST_PIXEL}"),
        }
    }
    match label.trim().parse() {
        Ok(digit) if digit < CLASSES => Ok(digit),
        _ => bail!("label is {label:?}, wanted a digit"),
    }
}

/// Shifts an image by a fraction of a pixel. Pixels beyond the edge are 0.
fn shift(image: ArrayView1<f32>, mut shifted: ArrayViewMut1<f32>, down: f32, right: f32) {
    let pixel = |row: i32, column: i32| {
        let inside = 0..SIDE as i32;
        match inside.contains(&row) && inside.contains(&column) {
            true => image[row as usize * SIDE + column as usize],
            false => 0.0,
        }
    };
    let mix = |a: f32, b: f32, share: f32| a + (b - a) * share;
    for (place, value) in shifted.iter_mut().enumerate() {
        let (y, x) = ((place / SIDE) as f32 - down, (place % SIDE) as f32 - right);
        let (row, column) = (y.floor() as i32, x.floor() as i32);
        let (low, high) = (x - x.floor(), y - y.floor());
        *value = mix(
            mix(pixel(row, column), pixel(row, column + 1), low),
            mix(pixel(row + 1, column), pixel(row + 1, column + 1), low),
            high,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(rows: usize) -> String {
        let header = (0..PIXELS).fold("label".to_owned(), |line, p| format!("{line},p{p}"));
        let row = |i: usize| format!("\n{}{}", i % 10, ",8".repeat(PIXELS));
        header + &(0..rows).map(row).collect::<String>() + "\n"
    }

    fn error(text: &str) -> String {
        format!("{:#}", Digits::parse(text.as_bytes()).unwrap_err())
    }

    #[test]
    fn a_file_is_read_and_split() {
        let digits = Digits::parse(csv(200).as_bytes()).unwrap();
        assert_eq!(digits.images.dim(), (200, 64));
        assert_eq!(digits.images[(199, 63)], 0.5);
        let (training, test) = digits.split(&mut Random::new(0, 0));
        assert_eq!((training.labels.len(), test.labels.len()), (160, 40));
        let mut labels = [training.labels, test.labels].concat();
        labels.sort_unstable();
        assert_eq!(labels, (0..200).map(|i| i / 20).collect::<Vec<_>>());
    }

    #[test]
    fn errors_name_the_line_and_what_is_wrong() {
        let broken = |from: &str, to: &str| error(&csv(100).replacen(from, to, 1));
        assert_eq!(
            broken("label", "digit"),
            "line 1: the header is not label,p0,...,p63"
        );
        assert_eq!(
            broken("\n4,8", "\n4"),
            "line 6: wanted 65 columns, found 64"
        );
        assert_eq!(
            broken("\n4,8", "\n4,8,8"),
            "line 6: wanted 65 columns, found 66"
        );
        assert_eq!(broken("\n4", "\n"), "line 6: label is \"\", wanted a digit");
        assert_eq!(
            broken("\n4", "\n10"),
            "line 6: label is \"10\", wanted a digit"
        );
        assert_eq!(
            broken("\n4,8", "\n4,x"),
            "line 6: p0 is \"x\", wanted 0 to 16"
        );
        assert_eq!(
            broken("\n4,8,8", "\n4,8,17"),
            "line 6: p1 is \"17\", wanted 0 to 16"
        );
    }

    #[test]
    fn a_short_file_is_refused() {
        assert_eq!(error(""), "the file is empty");
        assert_eq!(error(&csv(99)), "wanted at least 100 images, found 99");
    }

    #[test]
    fn a_shift_by_half_a_pixel_divides_it_among_four() {
        let mut image = ndarray::Array1::zeros(PIXELS);
        image[SIDE + 1] = 1.0;
        let mut shifted = image.clone();
        shift(image.view(), shifted.view_mut(), 0.5, -0.5);
        for (place, &value) in shifted.iter().enumerate() {
            let lit = [SIDE, SIDE + 1, 2 * SIDE, 2 * SIDE + 1].contains(&place);
            assert_eq!(value, if lit { 0.25 } else { 0.0 }, "{place}");
        }
    }
}
