//! Checkpoints of a run whose processes each hold shards of the parameters: one file per process, and an index that
//! names the files. The index is renamed into place after all files are complete, so a save that is killed leaves the
//! checkpoint before it.

mod checkpoint;
mod join;
mod load;
mod names;
mod save;

pub use checkpoint::{ShardFile, ShardedCheckpoint};
pub use join::{TensorShard, WholeTensor};
pub use load::load_sharded;
pub use names::{shard_name, split_shard_name};
pub use save::ShardedSave;

pub(super) use names::check_file_name;
#[cfg(all(test, not(miri)))]
pub(crate) use save::{Guard, put_in_place, remove_leftovers};
