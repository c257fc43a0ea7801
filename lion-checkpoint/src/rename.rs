//! The names of a file's parameters in the optimizer.

use super::error::CheckpointError;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// Returns the name in the optimizer of a parameter of a file, or `None` if it has the same name in both.
pub(crate) type Rename<'a> = dyn Fn(&str) -> Option<String> + Sync + 'a;

/// Returns the new name of a parameter.
pub(crate) fn renamed<'n>(rename: Option<&Rename<'_>>, name: &'n str) -> Cow<'n, str> {
    let new = rename.and_then(|rename| rename(name));
    new.map_or(Cow::Borrowed(name), Cow::Owned)
}

/// Renames the parameters of a file, and checks that no two of them get the same name.
pub(crate) struct Names<'a> {
    rename: Option<&'a Rename<'a>>,
    /// The name in the file, by the new name. Empty without a function, because the names of a file are unique.
    olds: HashMap<String, String>,
}

impl<'a> Names<'a> {
    pub(crate) fn new(rename: Option<&'a Rename<'a>>) -> Self {
        Names {
            rename,
            olds: HashMap::new(),
        }
    }

    /// Returns the new name of the next parameter of the file `path`.
    ///
    /// # Errors
    /// [`CheckpointError::NameCollision`] if a parameter before has the same new name.
    pub(crate) fn next<'n>(
        &mut self,
        name: &'n str,
        path: &Path,
    ) -> Result<Cow<'n, str>, CheckpointError> {
        let new = renamed(self.rename, name);
        if self.rename.is_none() {
            return Ok(new);
        }
        match self.olds.insert(new.clone().into_owned(), name.to_owned()) {
            None => Ok(new),
            Some(before) => Err(CheckpointError::NameCollision {
                path: path.to_owned(),
                given: [before, name.to_owned()],
                renamed: new.into_owned(),
            }),
        }
    }
}
