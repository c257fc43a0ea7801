//! The text as tokens, with a part for training and a part for validation.

use crate::random::Random;
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A text as tokens.
#[derive(Clone, Debug)]
pub struct Text {
    unit: Unit,
    /// The piece of text of each token.
    pieces: Vec<String>,
    tokens: BTreeMap<String, u32>,
    /// The tokens to train with.
    pub training: Vec<u32>,
    /// The tokens to measure the loss with.
    pub validation: Vec<u32>,
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A character.
    Character,
    /// A run of letters, digits and underscores; a run of spaces; or another character.
    Word,
}

impl Unit {
    /// The largest number of different tokens. Rarer ones share token 0.
    fn vocabulary(self) -> usize {
        match self {
            Unit::Character => 256,
            Unit::Word => 2048,
        }
    }

    /// Returns the pieces of a text.
    fn split(self, text: &str) -> Vec<&str> {
        let class = |c: char| match c {
            _ if self == Unit::Character => None,
            ' ' => Some(false),
            _ => (c.is_alphanumeric() || c == '_').then_some(true),
        };
        let mut pieces = Vec::new();
        let mut start = 0;
        let mut previous = None;
        for (index, character) in text.char_indices() {
            let class = class(character);
            if index > 0 && (class.is_none() || class != previous) {
                pieces.push(&text[start..index]);
                start = index;
            }
            previous = class;
        }
        if start < text.len() {
            pieces.push(&text[start..]);
        }
        pieces
    }
}

/// The text of token 0, which stands for all pieces that are not in the vocabulary.
const REPLACEMENT: &str = "\u{fffd}";

impl Text {
    /// Returns the Rust sources of a repository. Every tenth file is for validation. Files are read in the order of
    /// their paths; hidden folders and those named `target` are left out.
    ///
    /// # Errors
    /// If a folder or a file cannot be read, or there is not enough text.
    pub fn sources(root: &Path, unit: Unit) -> Result<Self> {
        let mut files = Vec::new();
        find_sources(root, &mut files)?;
        files.sort_unstable();
        let read = |path: &PathBuf| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let texts: Vec<String> = files.iter().map(read).collect::<Result<_>>()?;
        let part = |validation: bool| {
            let texts = texts.iter().enumerate();
            let texts = texts.filter(|(index, _)| (index % 10 == 9) == validation);
            texts.map(|(_, text)| text.as_str()).collect::<String>()
        };
        Self::new(&part(false), &part(true), unit)
            .with_context(|| format!("cannot use the Rust sources in {}", root.display()))
    }

    /// Returns the text of a file in UTF-8. The last tenth is for validation.
    ///
    /// # Errors
    /// If the file cannot be read, or there is not enough text.
    pub fn file(path: &Path, unit: Unit) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the text {}", path.display()))?;
        let split = text.floor_char_boundary(text.len() / 10 * 9);
        let (training, validation) = text.split_at(split);
        Self::new(training, validation, unit)
            .with_context(|| format!("cannot use the text {}", path.display()))
    }

    /// Returns a text in two parts.
    ///
    /// # Errors
    /// If one of the parts has fewer than 1,000 tokens.
    pub fn new(training: &str, validation: &str, unit: Unit) -> Result<Self> {
        let (training, validation) = (unit.split(training), unit.split(validation));
        for (part, length) in [
            ("training", training.len()),
            ("validation", validation.len()),
        ] {
            ensure!(
                length >= 1000,
                "{length} tokens for {part}, where at least 1000 are needed"
            );
        }
        let mut counts = BTreeMap::new();
        for piece in &training {
            *counts.entry(*piece).or_insert(0u64) += 1;
        }
        let mut by_count: Vec<(&str, u64)> = counts.into_iter().collect();
        by_count.sort_by_key(|&(piece, count)| (Reverse(count), piece));
        let frequent = by_count.iter().map(|&(piece, _)| piece);
        let frequent = frequent.filter(|&piece| piece != REPLACEMENT);
        let pieces = std::iter::once(REPLACEMENT).chain(frequent);
        let pieces: Vec<String> = pieces.take(unit.vocabulary()).map(str::to_owned).collect();
        let tokens = pieces.iter().cloned().zip(0..).collect();
        let mut text = Text {
            unit,
            pieces,
            tokens,
            training: Vec::new(),
            validation: Vec::new(),
        };
        text.training = text.tokens_of(&training);
        text.validation = text.tokens_of(&validation);
        Ok(text)
    }

    /// Returns the number of different tokens. The more frequent ones have the smaller numbers, apart from 0.
    pub fn vocabulary(&self) -> usize {
        self.pieces.len()
    }

    /// Returns the tokens of a text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.tokens_of(&self.unit.split(text))
    }

    fn tokens_of(&self, pieces: &[&str]) -> Vec<u32> {
        let token = |&piece: &&str| self.tokens.get(piece).copied().unwrap_or(0);
        pieces.iter().map(token).collect()
    }

    /// Returns the text of tokens.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let piece = |&token: &u32| self.pieces.get(token as usize);
        let pieces = tokens.iter().map(piece);
        pieces
            .map(|it| it.map_or(REPLACEMENT, String::as_str))
            .collect()
    }

    /// Returns a hash of the pieces and the tokens of both parts, to tell one text from another.
    pub fn hash(&self) -> u64 {
        let lengths = [&self.training, &self.validation].map(|part| part.len() as u64);
        let bytes = self.pieces.iter().flat_map(|piece| piece.bytes());
        let tokens = self.training.iter().chain(&self.validation);
        let numbers = lengths
            .into_iter()
            .chain(bytes.map(u64::from))
            .chain(tokens.map(|&token| u64::from(token)));
        fnv(numbers)
    }

    /// Returns windows of the validation part, evenly spaced: the tokens and those that follow.
    ///
    /// # Errors
    /// If the part is shorter than `length` + 1.
    pub fn validation_windows(&self, count: usize, length: usize) -> Result<(Tensor, Tensor)> {
        let last = last_start(&self.validation, length)?;
        let starts: Vec<usize> = (0..count).map(|i| i * last / count.max(1)).collect();
        windows(&self.validation, &starts, length)
    }
}

/// Returns a hash of numbers (FNV-1a, 64 bits).
pub fn fnv(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0xcbf2_9ce4_8422_2325, |hash, number| {
        (hash ^ number).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Adds the paths of the Rust sources in a folder.
fn find_sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let context = || format!("cannot read the folder {}", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let kind = entry.file_type().with_context(context)?;
        if kind.is_dir() && name != "target" && !name.starts_with('.') {
            find_sources(&path, files)?;
        } else if kind.is_file() && name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Draws minibatches: windows of a text at random places.
#[derive(Clone, Debug)]
pub struct Batches {
    random: Random,
    sequences: usize,
    length: usize,
}

impl Batches {
    /// Returns batches of `sequences` windows of `length` tokens. A seed gives the same batches on every platform.
    pub fn new(seed: u64, sequences: usize, length: usize) -> Self {
        Batches {
            random: Random::new(seed, 1),
            sequences,
            length,
        }
    }

    /// Returns the places in a text at which the windows of the next batch start.
    ///
    /// # Errors
    /// If the text is shorter than a window and one token.
    pub fn starts(&mut self, text: &[u32]) -> Result<Vec<usize>> {
        let last = last_start(text, self.length)?;
        Ok((0..self.sequences)
            .map(|_| self.random.below(last + 1))
            .collect())
    }

    /// Returns the next batch of a text: the tokens and those that follow, each of shape `[sequences, length]`.
    ///
    /// # Errors
    /// If the text is shorter than a window and one token.
    pub fn next(&mut self, text: &[u32]) -> Result<(Tensor, Tensor)> {
        let starts = self.starts(text)?;
        windows(text, &starts, self.length)
    }
}

fn last_start(text: &[u32], length: usize) -> Result<usize> {
    let last = text.len().checked_sub(length + 1);
    last.with_context(|| {
        format!(
            "a text of {} tokens, where windows have {length}",
            text.len()
        )
    })
}

fn windows(text: &[u32], starts: &[usize], length: usize) -> Result<(Tensor, Tensor)> {
    let at = |shift: usize| {
        let tokens = starts
            .iter()
            .flat_map(|start| &text[start + shift..][..length]);
        Tensor::from_iter(tokens.copied(), &Device::Cpu)?.reshape((starts.len(), length))
    };
    Ok((at(0)?, at(1)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_decoded_again_and_unknown_ones_replaced() {
        let text = Text::new(&"ab c".repeat(500), &"ab".repeat(500), Unit::Character).unwrap();
        assert_eq!(text.vocabulary(), 5);
        assert_eq!(text.decode(&text.encode("cab b")), "cab b");
        assert_eq!(text.decode(&text.encode("aéb")), "a\u{fffd}b");
        // The more frequent ones have the smaller tokens; ties are in the order of the characters.
        assert_eq!(text.encode(" abc"), [1, 2, 3, 4]);
    }

    #[test]
    fn texts_that_differ_have_other_hashes() {
        let hash = |training: &str, validation: &str| {
            let text = Text::new(
                &training.repeat(500),
                &validation.repeat(500),
                Unit::Character,
            );
            text.unwrap().hash()
        };
        let first = hash("ab c", "ab");
        assert_eq!(first, hash("ab c", "ab"));
        // The first has the same tokens, of other characters.
        let others = [hash("ab d", "ab"), hash("b ac", "ab"), hash("ab c", "ac")];
        assert!(!others.contains(&first), "{first} {others:?}");
    }

    #[test]
    fn words_are_runs() {
        let pieces = Unit::Word.split("let x_1 =  f(é2);\n\n}");
        let wanted = [
            "let", " ", "x_1", " ", "=", "  ", "f", "(", "é2", ")", ";", "\n", "\n", "}",
        ];
        assert_eq!(pieces, wanted);
        assert!(Unit::Word.split("").is_empty());
    }

    #[test]
    fn the_sources_are_in_two_parts_and_targets_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text.repeat(500)).unwrap();
        };
        for file in 0..20 {
            write(
                &format!("src/file{file:02}.rs"),
                if file % 10 == 9 { "v" } else { "t" },
            );
        }
        write("target/x.rs", "x");
        write(".git/y.rs", "y");
        write("notes.txt", "n");
        let text = Text::sources(folder.path(), Unit::Character).unwrap();
        assert_eq!(
            (text.training.len(), text.validation.len()),
            (18 * 500, 1000)
        );
        assert_eq!(text.decode(&text.training[..2]), "tt");
        // `v` is not in the training part.
        assert_eq!(text.validation[0], 0);
    }

    #[test]
    fn a_short_or_missing_text_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        let error = |path: &Path| format!("{:#}", Text::file(path, Unit::Character).unwrap_err());
        assert!(
            error(&path).contains("cannot read the text"),
            "{}",
            error(&path)
        );
        fs::write(&path, "é".repeat(5000)).unwrap();
        assert!(
            error(&path).contains("500 tokens for validation"),
            "{}",
            error(&path)
        );
        fs::write(&path, "é".repeat(20_000)).unwrap();
        let text = Text::file(&path, Unit::Character).unwrap();
        assert_eq!((text.training.len(), text.validation.len()), (18_000, 2000));
    }

    #[test]
    fn windows_and_batches_have_the_tokens_that_follow() {
        let numbers: String = (0..2000u32)
            .map(|i| char::from(b'a' + (i % 20) as u8))
            .collect();
        let text = Text::new(&numbers, &numbers, Unit::Character).unwrap();
        let follows = |(tokens, next): (Tensor, Tensor)| {
            let (tokens, next) = (
                tokens.to_vec2::<u32>().unwrap(),
                next.to_vec2::<u32>().unwrap(),
            );
            assert!(
                tokens
                    .iter()
                    .zip(&next)
                    .all(|(a, b)| a[1..] == b[..b.len() - 1])
            );
            tokens
        };
        let windows = follows(text.validation_windows(3, 7).unwrap());
        assert_eq!((windows.len(), windows[0].len()), (3, 7));
        let mut batches = Batches::new(5, 4, 9);
        let first = follows(batches.next(&text.training).unwrap());
        assert_eq!((first.len(), first[0].len()), (4, 9));
        let again = follows(Batches::new(5, 4, 9).next(&text.training).unwrap());
        assert_eq!(first, again);
        assert_ne!(first, follows(batches.next(&text.training).unwrap()));
        assert!(Batches::new(5, 4, 2000).next(&text.training).is_err());
    }
}
