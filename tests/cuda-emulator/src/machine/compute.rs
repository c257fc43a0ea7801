//! Operations on registers.

use super::lanes::each;
use super::logic::{lop3, permute};
use super::op::{Logic, Op, Verdict};
use super::warp::Warp;

/// Carries out an operation for the lanes of the mask.
pub(super) fn compute(warp: &mut Warp, op: &Op, mask: u32) {
    let (r32, r64) = (&warp.r32, &warp.r64);
    let word = |register: u32| &r32[register as usize];
    let long = |register: u32| &r64[register as usize];
    match op {
        Op::Un32(f, d, a) => {
            let out = f(word(*a));
            warp.put32(*d, &out, mask);
        }
        Op::Bin32(f, d, [a, b]) => {
            let out = f(word(*a), word(*b));
            warp.put32(*d, &out, mask);
        }
        Op::Tri32(f, d, [a, b, c]) => {
            let out = f(word(*a), word(*b), word(*c));
            warp.put32(*d, &out, mask);
        }
        Op::Un64(f, d, a) => {
            let out = f(long(*a));
            warp.put64(*d, &out, mask);
        }
        Op::Bin64(f, d, [a, b]) => {
            let out = f(long(*a), long(*b));
            warp.put64(*d, &out, mask);
        }
        Op::Tri64(f, d, [a, b, c]) => {
            let out = f(long(*a), long(*b), long(*c));
            warp.put64(*d, &out, mask);
        }
        Op::Widen(f, d, a) => {
            let out = f(word(*a));
            warp.put64(*d, &out, mask);
        }
        Op::Narrow(f, d, a) => {
            let out = f(long(*a));
            warp.put32(*d, &out, mask);
        }
        Op::Shift64(f, d, a, b) => {
            let out = f(long(*a), word(*b));
            warp.put64(*d, &out, mask);
        }
        Op::Wide(f, d, [a, b]) => {
            let out = f(word(*a), word(*b));
            warp.put64(*d, &out, mask);
        }
        Op::WideAdd(f, d, [a, b], c) => {
            let out = f(word(*a), word(*b), long(*c));
            warp.put64(*d, &out, mask);
        }
        Op::Field64(f, d, a, [b, c]) => {
            let out = f(long(*a), word(*b), word(*c));
            warp.put64(*d, &out, mask);
        }
        Op::Insert32(f, d, [a, b, from, len]) => {
            let out = f(word(*a), word(*b), word(*from), word(*len));
            warp.put32(*d, &out, mask);
        }
        Op::Insert64(f, d, [a, b], [from, len]) => {
            let out = f(long(*a), long(*b), word(*from), word(*len));
            warp.put64(*d, &out, mask);
        }
        Op::Lop3(d, [a, b, c], products) => {
            let out = lop3(word(*a), word(*b), word(*c), products);
            warp.put32(*d, &out, mask);
        }
        Op::Permute(d, [a, b], choices) => {
            let out = permute(word(*a), word(*b), *choices);
            warp.put32(*d, &out, mask);
        }
        Op::Move32(d, a) => {
            let out = *word(*a);
            warp.put32(*d, &out, mask);
        }
        Op::Move64(d, a) => {
            let out = *long(*a);
            warp.put64(*d, &out, mask);
        }
        Op::Compare32(f, [a, b], verdict) => {
            let out = f(word(*a), word(*b));
            decide(warp, verdict, out, mask);
        }
        Op::Compare64(f, [a, b], verdict) => {
            let out = f(long(*a), long(*b));
            decide(warp, verdict, out, mask);
        }
        Op::Select32(d, [a, b], p) => {
            let p = warp.predicates[*p as usize];
            let mut out = *word(*b);
            for (lane, (out, a)) in out.iter_mut().zip(word(*a)).enumerate() {
                *out = if p >> lane & 1 == 1 { *a } else { *out };
            }
            warp.put32(*d, &out, mask);
        }
        Op::Select64(d, [a, b], p) => {
            let p = warp.predicates[*p as usize];
            let mut out = *long(*b);
            for (lane, (out, a)) in out.iter_mut().zip(long(*a)).enumerate() {
                *out = if p >> lane & 1 == 1 { *a } else { *out };
            }
            warp.put64(*d, &out, mask);
        }
        Op::Logic(logic, d, [a, b]) => {
            let [a, b] = [a, b].map(|p| warp.predicates[*p as usize]);
            warp.put_predicate(*d, logic.of(a, b), mask);
        }
        Op::ActiveMask(d) => {
            let out = [mask; 32];
            warp.put32(*d, &out, mask);
        }
        Op::Cvt(convert) => {
            for lane in each(mask) {
                let bits = warp.lane(convert.from, lane);
                warp.put_lane(convert.to, lane, convert.convert(bits));
            }
        }
        op => repack(warp, op, mask),
    }
}

/// Packs or unpacks vectors.
fn repack(warp: &mut Warp, op: &Op, mask: u32) {
    match op {
        Op::Pack64(d, parts) => {
            let bits = 64 / parts.len() as u32;
            let mut out = [0; 32];
            for (at, part) in (0..).zip(parts) {
                for (out, part) in out.iter_mut().zip(&warp.r32[*part as usize]) {
                    *out |= u64::from(*part) << (bits * at);
                }
            }
            warp.put64(*d, &out, mask);
        }
        Op::Pack32(d, parts, bits) => {
            let mut out = [0; 32];
            for (at, part) in (0..).zip(parts) {
                for (out, part) in out.iter_mut().zip(&warp.r32[*part as usize]) {
                    *out |= *part << (bits * at);
                }
            }
            warp.put32(*d, &out, mask);
        }
        Op::Unpack64(parts, a) => {
            let bits = 64 / parts.len() as u32;
            let from = warp.r64[*a as usize];
            for (at, part) in (0..).zip(parts) {
                if let Some(d) = part {
                    let low = u32::MAX >> (32 - bits);
                    let out = from.map(|x| (x >> (bits * at)) as u32 & low);
                    warp.put32(*d, &out, mask);
                }
            }
        }
        Op::Unpack32(parts, a, bits) => {
            let from = warp.r32[*a as usize];
            for (at, part) in (0..).zip(parts) {
                if let Some(d) = part {
                    let low = u32::MAX >> (32 - bits);
                    let out = from.map(|x| x >> (bits * at) & low);
                    warp.put32(*d, &out, mask);
                }
            }
        }
        _ => {}
    }
}

/// Writes the results of a comparison.
fn decide(warp: &mut Warp, verdict: &Verdict, outcome: u32, mask: u32) {
    let (outcome, complement) = match verdict.combine {
        None => (outcome, !outcome),
        Some((logic, with, negated)) => {
            let with = warp.predicates[with as usize] ^ if negated { u32::MAX } else { 0 };
            (
                logic.of(outcome, with),
                logic.of(Logic::Not.of(outcome, 0), with),
            )
        }
    };
    if let Some(to) = verdict.result {
        warp.put_predicate(to, outcome, mask);
    }
    if let Some(to) = verdict.complement {
        warp.put_predicate(to, complement, mask);
    }
    if let Some((to, value)) = verdict.value {
        let out = std::array::from_fn(|lane| if outcome >> lane & 1 == 1 { value } else { 0 });
        warp.put32(to, &out, mask);
    }
}
