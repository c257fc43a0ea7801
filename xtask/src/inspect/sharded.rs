//! The files and the whole parameters of a checkpoint in several files.

use super::{NAME, TEXT, Verdict, cut, fields, is_damage, order, set, visible, word};
use lion::checkpoint::{CheckpointError, ShardedCheckpoint, TensorShard};
use serde_json::{Value, json};
use std::path::Path;

/// The files that an index names, and whether the checksums of each are right.
pub(super) struct Sharded {
    checkpoint: ShardedCheckpoint,
    verdicts: Vec<Verdict>,
}

impl Sharded {
    /// Opens an index and its files, and reads all planes of the files.
    pub(super) fn open(file: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = ShardedCheckpoint::open(file)?;
        let files = 0..checkpoint.files().len();
        let verdicts = files.map(|file| checkpoint.verify_file(file)).collect();
        Ok(Sharded {
            checkpoint,
            verdicts,
        })
    }

    pub(super) fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter()
    }

    /// Prints the files, and each whole parameter with its shards.
    pub(super) fn print(&self) {
        let files = self.checkpoint.files();
        for (i, (file, verdict)) in files.iter().zip(&self.verdicts).enumerate() {
            let (name, bytes) = (visible(&file.name, NAME), file.bytes);
            println!(
                "file {i}: {name}, {bytes} bytes, checksums {}",
                word(verdict)
            );
        }
        let wholes = self.checkpoint.tensors();
        let width = wholes
            .iter()
            .map(|it| visible(&it.name, NAME).chars().count());
        let width = width.max().unwrap_or(0).max("tensor".len());
        println!(
            "\n{:width$} {:>12} {:>5} {:>4} {:>13} {:>8} {:>16} {:8} overrides",
            "tensor", "elements", "type", "bits", "state bytes", "steps", "seed", "order"
        );
        let settings = self.checkpoint.settings();
        for whole in wholes {
            let group = whole.group.map(|group| &settings.groups[group].name);
            let group = group.map_or(String::new(), |it| format!("group {} ", visible(it, NAME)));
            println!(
                "{:width$} {:>12} {:>5} {:>4} {:>13} {:>8} {:016x} {:8} {group}{}",
                visible(&whole.name, NAME),
                whole.len,
                whole.dtype.name(),
                whole.bits.get(),
                whole.shards.iter().map(state_bytes).sum::<u64>(),
                whole.steps,
                whole.seed,
                order(whole.order.as_ref()),
                set(&whole.overrides)
            );
            for shard in &whole.shards {
                let end = shard.offset + shard.len;
                println!(
                    "  elements {}..{end} in file {}, {} bytes",
                    shard.offset,
                    shard.file,
                    state_bytes(shard)
                );
            }
        }
        let shards = wholes.iter().flat_map(|whole| &whole.shards);
        println!(
            "\n{} tensors in {} files, {} elements, {} bytes of state",
            wholes.len(),
            files.len(),
            wholes.iter().map(|whole| whole.len).sum::<u64>(),
            shards.map(state_bytes).sum::<u64>()
        );
    }

    /// Adds the files and the whole parameters to the description of the index.
    pub(super) fn add_to(&self, value: &mut Value) {
        let files = self.checkpoint.files().iter().zip(&self.verdicts);
        let files = files.map(|(file, verdict)| {
            json!({
                "name": cut(&file.name, TEXT),
                "bytes": file.bytes,
                "checksum": format!("{:08x}", file.checksum),
                "error": verdict.as_ref().err().map(ToString::to_string),
            })
        });
        value["files"] = files.collect();
        let settings = self.checkpoint.settings();
        let wholes = self.checkpoint.tensors().iter().map(|whole| {
            let shards = whole.shards.iter().map(|shard| {
                json!({
                    "name": cut(&shard.name, TEXT),
                    "file": shard.file,
                    "offset": shard.offset,
                    "elements": shard.len,
                    "state_bytes": state_bytes(shard),
                })
            });
            json!({
                "name": cut(&whole.name, TEXT),
                "elements": whole.len,
                "type": whole.dtype.name(),
                "layout": whole.layout,
                "bits": whole.bits.get(),
                "block": whole.block,
                "group": whole.group.map(|group| cut(&settings.groups[group].name, TEXT)),
                "overrides": fields(&whole.overrides),
                "order": order(whole.order.as_ref()),
                "steps": whole.steps,
                "seed": whole.seed,
                "shards": shards.collect::<Vec<_>>(),
            })
        });
        value["tensors"] = wholes.collect();
        if self
            .verdicts()
            .any(|verdict| verdict.as_ref().is_err_and(is_damage))
        {
            value["damaged"] = true.into();
        }
    }
}

fn state_bytes(shard: &TensorShard) -> u64 {
    shard.planes.iter().map(|plane| plane.bytes).sum()
}
