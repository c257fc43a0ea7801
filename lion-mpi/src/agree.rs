//! Checks that all ranks make the same call. A difference becomes an error on every rank, where otherwise the ranks
//! would wait for each other for ever.

use crate::Error;
use mpi::datatype::PartitionMut;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A property that must be the same on all ranks.
pub(crate) type Field = (&'static str, String);

/// What all ranks must agree on about one parameter, or about the call if the name is `None`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item<'a> {
    pub(crate) name: Option<&'a str>,
    /// A hash of what [`describe`](agree) returns for this item.
    pub(crate) hash: u64,
}

/// Returns the hash of a value. All ranks run the same program, so they have the same hash function.
pub(crate) fn hash_of(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Checks that all ranks have accepted their arguments, and that their items are equal. `items` are in the same order
/// on all ranks, for example that of their names. `describe` returns the properties of an item; it is called only if
/// the ranks differ.
///
/// # Errors
/// The error of this rank; [`Error::OtherRank`]; [`Error::Disagreement`].
pub(crate) fn agree<'a>(
    comm: &impl Communicator,
    items: Result<&[Item<'a>], Error>,
    describe: impl Fn(usize) -> Vec<Field>,
) -> Result<(), Error> {
    let items = match items {
        Ok(items) => items,
        Err(error) => return Err(refuse(comm, error)),
    };
    let mut hasher = DefaultHasher::new();
    for item in items {
        (item.name, item.hash).hash(&mut hasher);
    }
    let hashes = statuses(comm, None, hasher.finish())?;
    if hashes.iter().all(|&hash| hash == hashes[0]) {
        return Ok(());
    }
    let mut text = Vec::new();
    for (i, item) in items.iter().enumerate() {
        put(&mut text, item.name.unwrap_or_default());
        let fields = describe(i);
        text.extend((fields.len() as u64).to_le_bytes());
        for (what, value) in fields {
            put(&mut text, what);
            put(&mut text, &value);
        }
    }
    let texts = gather_bytes(comm, &text);
    let first = parse(&texts[0]);
    for (rank, text) in texts.iter().enumerate() {
        if let Some(error) = difference(rank, &parse(text), &first) {
            return Err(error);
        }
    }
    // Equal descriptions with different hashes.
    Err(Error::Disagreement {
        parameter: None,
        what: "the hash of the call".to_owned(),
        rank: hashes
            .iter()
            .position(|&hash| hash != hashes[0])
            .unwrap_or(0),
        given: "another".to_owned(),
        wanted: "one".to_owned(),
    })
}

/// Tells the other ranks, which are in [`agree`], that this one refuses its arguments. Returns the error.
pub(crate) fn refuse(comm: &impl Communicator, error: Error) -> Error {
    // It returns the error of the lowest rank, which may be another.
    let _ = statuses(comm, Some(&error), 0);
    error
}

/// Returns a result if it is one on all ranks.
///
/// # Errors
/// The error of this rank; [`Error::OtherRank`].
pub(crate) fn on_all<T>(comm: &impl Communicator, result: Result<T, Error>) -> Result<T, Error> {
    match result {
        Ok(value) => statuses(comm, None, 0).map(|_| value),
        Err(error) => Err(refuse(comm, error)),
    }
}

/// Returns the numbers of all ranks.
///
/// # Errors
/// [`Error::OtherRank`] if a rank has an error.
fn statuses(
    comm: &impl Communicator,
    error: Option<&Error>,
    number: u64,
) -> Result<Vec<u64>, Error> {
    let own = [u64::from(error.is_some()), number];
    let mut all = vec![0u64; 2 * comm.size() as usize];
    comm.all_gather_into(&own[..], &mut all[..]);
    let (ranks, _) = all.as_chunks::<2>();
    if let Some(rank) = ranks.iter().position(|&[failed, _]| failed != 0) {
        let message = error.map(|error| with_sources(error)).unwrap_or_default();
        let message = broadcast(comm, rank, message.into_bytes());
        return Err(Error::OtherRank { rank, message });
    }
    Ok(ranks.iter().map(|&[_, number]| number).collect())
}

/// Returns the message of an error with those of its sources, which do not travel to other ranks.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        message += &format!(": {error}");
        source = error.source();
    }
    message
}

/// Sends the bytes of one rank to all, as text.
pub(crate) fn broadcast(comm: &impl Communicator, rank: usize, mut bytes: Vec<u8>) -> String {
    let root = comm.process_at_rank(rank as i32);
    let mut len = bytes.len() as u64;
    root.broadcast_into(&mut len);
    bytes.resize(len as usize, 0);
    if len > 0 {
        root.broadcast_into(&mut bytes[..]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the bytes of each rank.
pub(crate) fn gather_bytes(comm: &impl Communicator, own: &[u8]) -> Vec<Vec<u8>> {
    let mut lens = vec![0u64; comm.size() as usize];
    comm.all_gather_into(&(own.len() as u64), &mut lens[..]);
    let total: u64 = lens.iter().sum();
    let counts: Vec<i32> = lens.iter().map(|&len| len as i32).collect();
    if total > i32::MAX as u64 {
        // More than the counts of one call can say.
        let ranks = lens.iter().enumerate();
        return ranks
            .map(|(rank, &len)| broadcast_bytes(comm, rank, own, len))
            .collect();
    }
    let starts = starts(&counts);
    // Never empty: the address of an empty vector is one that OpenMPI takes for MPI_IN_PLACE.
    let mut all = vec![0u8; total.max(1) as usize];
    let own = if own.is_empty() { &[0][..0] } else { own };
    let mut received = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
    comm.all_gather_varcount_into(own, &mut received);
    let ranges = starts.iter().zip(&counts);
    ranges
        .map(|(&start, &len)| all[start as usize..][..len as usize].to_vec())
        .collect()
}

/// Sends `len` bytes of a rank to all, in calls of at most 1 GiB.
fn broadcast_bytes(comm: &impl Communicator, rank: usize, own: &[u8], len: u64) -> Vec<u8> {
    let mut bytes = match comm.rank() as usize == rank {
        true => own.to_vec(),
        false => vec![0; len as usize],
    };
    let root = comm.process_at_rank(rank as i32);
    for part in bytes.chunks_mut(1 << 30) {
        root.broadcast_into(part);
    }
    bytes
}

/// Returns the sums of the numbers before each number.
pub(crate) fn starts(lens: &[i32]) -> Vec<i32> {
    let mut sum = 0;
    let before = |&len: &i32| {
        let start = sum;
        sum += len;
        start
    };
    lens.iter().map(before).collect()
}

fn put(text: &mut Vec<u8>, value: &str) {
    text.extend((value.len() as u64).to_le_bytes());
    text.extend(value.as_bytes());
}

type Described = Vec<(String, Vec<(String, String)>)>;

/// Reads what [`agree`] wrote on another rank of the same program.
fn parse(mut text: &[u8]) -> Described {
    fn number(text: &mut &[u8]) -> usize {
        let Some((bytes, rest)) = text.split_first_chunk::<8>() else {
            return 0;
        };
        *text = rest;
        u64::from_le_bytes(*bytes) as usize
    }
    fn string(text: &mut &[u8]) -> String {
        let len = number(text).min(text.len());
        let (value, rest) = text.split_at(len);
        *text = rest;
        String::from_utf8_lossy(value).into_owned()
    }
    let mut items = Vec::new();
    while !text.is_empty() {
        let name = string(&mut text);
        let fields = number(&mut text);
        let fields = (0..fields).map(|_| (string(&mut text), string(&mut text)));
        items.push((name, fields.collect()));
    }
    items
}

/// Returns the first difference between the items of a rank and those of rank 0, which are sorted by name.
fn difference(rank: usize, given: &Described, wanted: &Described) -> Option<Error> {
    let disagreement = |name: &str, what: &str, given: &str, wanted: &str| {
        Some(Error::Disagreement {
            parameter: (!name.is_empty()).then(|| name.to_owned()),
            what: what.to_owned(),
            rank,
            given: given.to_owned(),
            wanted: wanted.to_owned(),
        })
    };
    for i in 0.. {
        let (ours, theirs) = match (given.get(i), wanted.get(i)) {
            (None, None) => return None,
            (Some(ours), Some(theirs)) => (ours, theirs),
            (Some((name, _)), None) => return disagreement(name, "it", "given", "missing"),
            (None, Some((name, _))) => return disagreement(name, "it", "missing", "given"),
        };
        if ours.0 < theirs.0 {
            return disagreement(&ours.0, "it", "given", "missing");
        }
        if ours.0 > theirs.0 {
            return disagreement(&theirs.0, "it", "missing", "given");
        }
        for (given, wanted) in ours.1.iter().zip(&theirs.1) {
            if given != wanted {
                return disagreement(&ours.0, &wanted.0, &given.1, &wanted.1);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(items: &[(&str, &str)]) -> Described {
        let fields = |len: &str| vec![("the length".to_owned(), len.to_owned())];
        let items = items.iter();
        items
            .map(|&(name, len)| (name.to_owned(), fields(len)))
            .collect()
    }

    #[test]
    fn the_first_difference_is_named() {
        let wanted = items(&[("a", "4"), ("c", "5")]);
        for (given, message) in [
            (vec![("a", "4"), ("c", "5")], None),
            (
                vec![("a", "3"), ("c", "5")],
                Some("parameter `a`: the length is 3 on rank 2, and 4 on rank 0"),
            ),
            (
                vec![("a", "4")],
                Some("parameter `c`: it is missing on rank 2, and given on rank 0"),
            ),
            (
                vec![("a", "4"), ("b", "1"), ("c", "5")],
                Some("parameter `b`: it is given on rank 2, and missing on rank 0"),
            ),
            (
                vec![("c", "5")],
                Some("parameter `a`: it is missing on rank 2, and given on rank 0"),
            ),
            (
                vec![("a", "4"), ("c", "5"), ("d", "1")],
                Some("parameter `d`: it is given on rank 2, and missing on rank 0"),
            ),
        ] {
            let error = difference(2, &items(&given), &wanted).map(|error| error.to_string());
            assert_eq!(error.as_deref(), message);
        }
    }

    #[test]
    fn starts_are_sums() {
        assert_eq!(starts(&[3, 0, 4]), [0, 3, 3]);
    }
}
