//! Saving and loading: a file per rank, and an index.

use crate::Error;
use crate::agree::{Item, agree, hash_of, on_all, with_sources};
use crate::sharded::Sharded;
use lion::StepArgs;
use lion::checkpoint::{Load, LoadReport, Save, ShardedCheckpoint, ShardedSave};
use mpi::collective::SystemOperation;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use std::path::Path;

impl Sharded {
    /// Saves hyper-parameters and states, and returns the size of all files in bytes. All ranks make this call, with a
    /// path on a file system that they share.
    ///
    /// Each rank writes a file of its own next to the path, named `PATH.ID.RANK` with a random `ID`. When all files are
    /// synced, rank 0 renames an index into place at the path, and removes the files of the save before. A rank that is
    /// killed at any instant leaves that save.
    ///
    /// Any number of ranks can load the checkpoint, and so can one process with [`lion::Lion::load`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] on the ranks that fail, and [`Error::OtherRank`] on the others. The checkpoint before is
    /// kept, except after [`CheckpointError::NotDurable`](lion::checkpoint::CheckpointError::NotDurable) of rank 0.
    /// [`Error::Disagreement`], [`Error::Damaged`], and the errors of [`allocate`](Sharded::allocate).
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<u64, Error> {
        self.save_with(path, &Save::new())
    }

    /// Does what [`save`](Sharded::save) does, together with the values of parameters and named bytes, which rank 0 passes.
    /// What the other ranks pass is ignored. `Checkpoint::open` on the index reads them back.
    ///
    /// # Errors
    /// The errors of [`save`](Sharded::save).
    pub fn save_with(&mut self, path: impl AsRef<Path>, save: &Save<'_>) -> Result<u64, Error> {
        self.allocate()?;
        self.check_whole()?;
        self.agree_on_call("save", &StepArgs::new())?;
        self.agree_on_params(self.by_name())?;
        let mut id = ShardedSave::random_id();
        if self.comm.rank() == 0 {
            // Files of killed saves would need room beside those of this save. No rank writes before it has the id.
            ShardedSave::new(path.as_ref(), id).remove_leftovers();
        }
        self.comm.process_at_rank(0).broadcast_into(&mut id);
        let files = ShardedSave::new(path.as_ref(), id);
        let own = files.file(self.comm.rank() as usize);
        let saved = on_all(&self.comm, self.lion.save(&own).map_err(Error::from));
        let bytes = match saved {
            Ok(bytes) => bytes,
            Err(error) => {
                // The next save removes it, if this fails.
                let _ = std::fs::remove_file(&own);
                return Err(error);
            }
        };
        let committed = match self.comm.rank() {
            0 => files.commit_with(self.comm.size() as usize, save),
            _ => Ok(0),
        };
        let bytes = bytes + on_all(&self.comm, committed.map_err(Error::from))?;
        let mut total = 0;
        self.comm
            .all_reduce_into(&bytes, &mut total, SystemOperation::sum());
        Ok(total)
    }

    /// Loads hyper-parameters and states. All ranks make this call. The checkpoint may come from any number of ranks, or
    /// from one process.
    ///
    /// # Errors
    /// The errors of [`load_with`](Sharded::load_with).
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport, Error> {
        self.load_with(path, Load::new())
    }

    /// Loads hyper-parameters and states, with options. All ranks make this call, with the same options. Each rank reads
    /// the states of its share and checks them before any rank changes its own.
    ///
    /// # Errors
    /// - [`Error::Checkpoint`] on the ranks that cannot read the checkpoint or find a difference or damage, and
    ///   [`Error::OtherRank`] on the others. Nothing has changed.
    /// - [`Error::Partly`] if a rank can no longer read what it has checked. Then other ranks may have loaded theirs.
    /// - [`Error::Disagreement`], also if the ranks find different checkpoints at the path, and the errors of
    ///   [`allocate`](Sharded::allocate).
    pub fn load_with(
        &mut self,
        path: impl AsRef<Path>,
        how: Load<'_>,
    ) -> Result<LoadReport, Error> {
        self.allocate()?;
        self.agree_on_call("load", &StepArgs::new())?;
        let checked = ShardedCheckpoint::open(path).and_then(|mut checkpoint| {
            let report = checkpoint.check(&mut self.lion, how)?;
            Ok((checkpoint, report))
        });
        let (mut checkpoint, report) = on_all(&self.comm, checked.map_err(Error::from))?;
        self.agree_on_checkpoint(&mut checkpoint, &report)?;
        let rank = self.comm.rank() as usize;
        let loaded = checkpoint.load(&mut self.lion, how).map_err(Error::from);
        let loaded = loaded.and_then(|report| {
            self.set_seeds()?;
            Ok(report)
        });
        let result = loaded.map_err(|error| Error::Partly {
            rank,
            message: with_sources(&error),
        });
        let result = match on_all(&self.comm, result) {
            Err(Error::OtherRank { rank, message }) => Err(Error::Partly { rank, message }),
            result => result,
        };
        self.damaged = result.is_err();
        result
    }

    /// Checks that all ranks have opened the same checkpoint and load the same parameters.
    fn agree_on_checkpoint(
        &self,
        checkpoint: &mut ShardedCheckpoint,
        report: &LoadReport,
    ) -> Result<(), Error> {
        // The names are in the order of the checkpoint.
        let loaded = report.loaded.join(", ");
        let files = format!("{:?}", checkpoint.files());
        let bytes = checkpoint.index().file_bytes();
        let item = Item {
            name: None,
            hash: hash_of((&files, bytes, &loaded)),
        };
        agree(&self.comm, Ok(&[item]), |_| {
            vec![
                ("the size of the checkpoint's index", bytes.to_string()),
                ("the files of the checkpoint", files.clone()),
                ("the list of loaded parameters", loaded.clone()),
            ]
        })
    }
}
