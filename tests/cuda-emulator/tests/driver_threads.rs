//! Concurrent threads with separate contexts and with a shared one.

mod api;

use api::*;
use std::thread;

#[test]
fn threads_with_separate_contexts_do_not_interfere() {
    let threads: Vec<_> = (0..4_u32)
        .map(|number| {
            thread::spawn(move || {
                let context = Context::new();
                let (store, increment) = (context.function("store"), context.function("increment"));
                let (stream, device) = (context.stream(NON_BLOCKING), context.alloc(4));
                assert_eq!(launch(store, 1, stream, device, (100 * number).into()), 0);
                for _ in 0..50 {
                    assert_eq!(launch(increment, 1, stream, device, device), 0);
                }
                ok!(cuStreamSynchronize(stream));
                (number, context.word(device))
            })
        })
        .collect();
    for thread in threads {
        let (number, word) = thread.join().expect("no panic");
        assert_eq!(word, 100 * number + 50);
    }
}

#[test]
fn threads_share_a_context_and_each_has_its_own_stack() {
    let context = Context::new();
    let store = context.function("store").addr();
    let (device, shared) = (context.alloc(16), context.0.addr());
    let threads: Vec<_> = (0..4_u64)
        .map(|number| {
            thread::spawn(move || {
                // Nothing is current on a new thread.
                fails!(201, cuCtxSynchronize());
                ok!(cuCtxSetCurrent(std::ptr::without_provenance_mut(shared)));
                let store = std::ptr::without_provenance_mut(store);
                let code = launch(store, 1, DEFAULT_STREAM, device + 4 * number, 7 + number);
                assert_eq!(code, 0);
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    let mut seen = [0_u32; 4];
    ok!(cuMemcpyDtoH_v2(seen.as_mut_ptr().cast(), device, 16));
    assert_eq!(seen, [7, 8, 9, 10]);
}
