//! Collective operations of a warp: shuffles and votes of the members of a mask.

use super::fault::{Cause, Done, Trouble};
use super::lanes::each;
use super::op::{Shuffle, ShuffleMode, V32, Vote, VoteMode, Voted};
use super::warp::Warp;

/// Returns whether all members of the lanes' masks have arrived, each with the same mask.
pub(super) fn together(members: &V32, mask: u32) -> Done<bool> {
    let mut rest = mask;
    while rest != 0 {
        let lane = rest.trailing_zeros();
        let named = members[lane as usize];
        if named >> lane & 1 == 0 {
            return Err(Trouble::new(
                Cause::LaunchFailed,
                lane,
                format!("the member mask {named:#010x} omits the lane itself"),
            ));
        }
        if named & !mask != 0 {
            return Ok(false);
        }
        for other in each(named) {
            if members[other] != named {
                return Err(Trouble::new(
                    Cause::LaunchFailed,
                    other as u32,
                    format!(
                        "its member mask is {:#010x} where lane {lane} has {named:#010x}",
                        members[other]
                    ),
                ));
            }
        }
        rest &= !named;
    }
    Ok(true)
}

/// Executes `shfl.sync` for lanes whose members have all arrived.
pub(super) fn shuffled(warp: &mut Warp, shuffle: &Shuffle, members: &V32, mask: u32) -> Done {
    let values = warp.r32[shuffle.value as usize];
    let by = warp.r32[shuffle.by as usize];
    let clamp = warp.r32[shuffle.clamp as usize];
    let (mut out, mut valid) = ([0; 32], 0);
    for lane in each(mask) {
        let segment = clamp[lane] >> 8 & 31;
        let (by, clamp) = (by[lane] & 31, clamp[lane] & 31);
        let own = lane as u32;
        let least = own & segment;
        let most = least | clamp & !segment;
        let (from, inside) = match shuffle.mode {
            // The source lane may be below 0, and the clamp is a lower bound.
            ShuffleMode::Up => (own.wrapping_sub(by), own as i32 - by as i32 >= most as i32),
            ShuffleMode::Down => (own + by, own + by <= most),
            ShuffleMode::Butterfly => (own ^ by, own ^ by <= most),
            ShuffleMode::Index => {
                let from = least | by & !segment;
                (from, from <= most)
            }
        };
        let from = if inside { from } else { own };
        if members[lane] >> from & 1 == 0 {
            return Err(Trouble::new(
                Cause::LaunchFailed,
                own,
                format!(
                    "reads the value of lane {from}, which is not in the member mask {:#010x}",
                    members[lane]
                ),
            ));
        }
        out[lane] = values[from as usize];
        valid |= u32::from(inside) << lane;
    }
    if let Some(to) = shuffle.to {
        warp.put32(to, &out, mask);
    }
    if let Some(to) = shuffle.valid {
        warp.put_predicate(to, valid, mask);
    }
    Ok(())
}

/// Executes `vote.sync` for lanes whose members have all arrived.
pub(super) fn voted(warp: &mut Warp, vote: &Vote, members: &V32, mask: u32) {
    let value = warp.predicates[vote.value as usize] ^ if vote.negated { u32::MAX } else { 0 };
    let ballot: V32 = std::array::from_fn(|lane| value & members[lane]);
    match &vote.to {
        Voted::Ballot(to) => warp.put32(*to, &ballot, mask),
        Voted::Predicate(mode, to) => {
            let mut out = 0;
            for lane in each(mask) {
                let (votes, all) = (ballot[lane], members[lane]);
                let yes = match mode {
                    VoteMode::All => votes == all,
                    VoteMode::Any => votes != 0,
                    VoteMode::Uniform => votes == all || votes == 0,
                };
                out |= u32::from(yes) << lane;
            }
            warp.put_predicate(*to, out, mask);
        }
    }
}
