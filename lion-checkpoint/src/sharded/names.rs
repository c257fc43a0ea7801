//! The names of shards in an optimizer, and those of the files of a sharded checkpoint.

use crate::error::Damage;
use crate::format::{check_length, value};
use std::path::{Component, Path};

/// Returns the name of the parameter that is the shard of `whole` from element `offset` on: `whole@offset`.
///
/// A process that holds shards of a parameter registers each under this name with
/// [`ParamSpec::shard`](lion_core::ParamSpec::shard) and an override of the seed, which is the seed of the whole. It also
/// registers a parameter of 0 elements under the name of the whole, which has the group and the overrides of the whole.
///
/// ```
/// use lion::{Dtype, Lion, Overrides, ParamSpec};
/// use lion::checkpoint::{shard_name, split_shard_name};
///
/// // The last 488 of 1000 elements.
/// let mut lion = Lion::builder().build()?;
/// let whole = lion.register(ParamSpec::new("w", 0, Dtype::F32).shard(0, 1000))?;
/// let seed = Overrides::new().seed(lion.info(whole)?.hyper.seed);
/// let shard = ParamSpec::new(shard_name("w", 512), 488, Dtype::F32).shard(512, 1000);
/// let shard = lion.register(shard.overrides(seed))?;
/// assert_eq!(lion.info(shard)?.name, "w@512");
/// assert_eq!(split_shard_name("w@512"), Some(("w", 512)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn shard_name(whole: &str, offset: usize) -> String {
    format!("{whole}@{offset}")
}

/// Returns the name of the whole and the offset in the name of a shard, which [`shard_name`] returns, or `None` if
/// `name` is not of that form.
///
/// ```
/// use lion::checkpoint::split_shard_name;
/// assert_eq!(split_shard_name("a@b@256"), Some(("a@b", 256)));
/// for other in ["w", "w@", "@256", "w@0256", "w@+256", "w@99999999999999999999999"] {
///     assert_eq!(split_shard_name(other), None);
/// }
/// ```
pub fn split_shard_name(name: &str) -> Option<(&str, usize)> {
    let (whole, digits) = name.rsplit_once('@')?;
    let is_valid = !whole.is_empty() && is_decimal(digits.as_bytes());
    let offset = digits.parse().ok().filter(|_| is_valid)?;
    Some((whole, offset))
}

/// Returns the name of the whole of which a parameter is a shard. `whole_len` is the length of its whole, and `empty`
/// returns that of the parameter of 0 elements with a name, if there is one.
///
/// A name with an `@` may also be that of a whole. Therefore the name counts as that of a shard only if the parameter
/// is at that offset and its whole is registered beside it.
pub(super) fn whole_name(
    name: &str,
    offset: u64,
    whole_len: u64,
    empty: impl Fn(&str) -> Option<u64>,
) -> &str {
    match split_shard_name(name) {
        Some((whole, at)) if at as u64 == offset && empty(whole) == Some(whole_len) => whole,
        _ => name,
    }
}

/// Returns whether `name` is that of a file of a save to an index with the name `index`: `index.ID.RANK`, where ID is
/// 16 hexadecimal digits, and RANK is a decimal number.
pub(super) fn is_shard_file(index: &[u8], name: &[u8]) -> bool {
    let rest = name.strip_prefix(index);
    let rest = rest.and_then(|rest| rest.strip_prefix(b"."));
    let Some((id, rest)) = rest.and_then(|rest| rest.split_at_checked(16)) else {
        return false;
    };
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    id.iter().all(is_hex) && rest.strip_prefix(b".").is_some_and(is_decimal)
}

/// Returns whether these are the digits of a number without leading zeros.
fn is_decimal(digits: &[u8]) -> bool {
    let leads_with_0 = digits.len() > 1 && digits[0] == b'0';
    !digits.is_empty() && !leads_with_0 && digits.iter().all(u8::is_ascii_digit)
}

/// Checks that a name is that of a file in the folder of the index, on every operating system.
pub(crate) fn check_file_name(name: &str) -> Result<(), Damage> {
    check_length("the length of a name", name)?;
    let mut components = Path::new(name).components();
    let is_one = matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(only)), None) if only == name
    );
    if is_one && !name.contains(['/', '\\', ':', '\0']) {
        return Ok(());
    }
    let wanted = "the name of a file in the folder of the index";
    Err(value("the name of a file", format!("{name:?}"), wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_told_from_a_whole_whose_name_has_the_same_form() {
        let empty = |name: &str| (name == "w").then_some(1000);
        assert_eq!(whole_name("w@512", 512, 1000, empty), "w");
        // At another offset, of another length, without a whole, and another name.
        assert_eq!(whole_name("w@512", 0, 1000, empty), "w@512");
        assert_eq!(whole_name("w@512", 512, 1001, empty), "w@512");
        assert_eq!(whole_name("v@512", 512, 1000, empty), "v@512");
        assert_eq!(whole_name("w", 0, 1000, empty), "w");
    }

    #[test]
    fn files_of_a_save_are_told_from_others() {
        let index = b"run.lion";
        for own in [
            "run.lion.0123456789abcdef.0",
            "run.lion.ffffffffffffffff.4096",
        ] {
            assert!(is_shard_file(index, own.as_bytes()), "{own}");
        }
        for other in [
            "run.lion",
            "run.lion.0123456789abcdef",
            "run.lion.0123456789abcdef.",
            "run.lion.0123456789abcdef.x",
            "run.lion.0123456789abcdef.01",
            "run.lion.0123456789abcdef.1.bak",
            "run.lion.0123456789ABCDEF.1",
            "run.lion.0123456789abcde.1",
            "run.lion.0123456789abcdef0.1",
            "run.lion2.0123456789abcdef.1",
            "run.0123456789abcdef.1",
            ".run.lion.0123456789abcdef.1",
        ] {
            assert!(!is_shard_file(index, other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn names_of_files_in_other_folders_are_refused() {
        for good in ["run.lion.0123456789abcdef.0", "..a", "a b", "é"] {
            assert!(check_file_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(65_536);
        for bad in [
            "", ".", "..", "/", "/a", "a/", "a/b", "../a", "./a", "a\\b", "c:a", "a\0", &long,
        ] {
            assert!(check_file_name(bad).is_err(), "{bad:?}");
        }
    }
}
