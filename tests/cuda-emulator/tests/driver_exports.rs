//! Opens the library as a program opens `libcuda.so.1`.

use libloading::{Library, Symbol};
use std::path::PathBuf;

/// The functions that cust 0.3.2 links to, as `nm` lists them.
const NAMES: &str = include_str!("cust-symbols.txt");

fn library() -> Library {
    // This test is in target/PROFILE/deps, and so is the library that cargo builds for it.
    let mut path = std::env::current_exe().expect("a path");
    path.pop();
    let name = libloading::library_filename("cuda_emulator");
    let path: PathBuf = path.join(name);
    // SAFETY: the library has no initializers.
    unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn all_functions_of_cust_are_exported() {
    let library = library();
    assert_eq!(NAMES.lines().count(), 105);
    let missing: Vec<&str> = NAMES
        .lines()
        // SAFETY: the function is only looked up, not called.
        .filter(|name| unsafe { library.get::<extern "C" fn()>(name.as_bytes()) }.is_err())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn library_reports_its_version_and_that_it_is_an_emulator() {
    let library = library();
    // SAFETY: the types are those of CUDA's header and of the driver's documentation.
    let (init, version, emulator): (
        Symbol<'_, unsafe extern "C" fn(u32) -> u32>,
        Symbol<'_, unsafe extern "C" fn(*mut i32) -> u32>,
        Symbol<'_, unsafe extern "C" fn() -> i32>,
    ) = unsafe {
        (
            library.get(b"cuInit").expect("exported"),
            library.get(b"cuDriverGetVersion").expect("exported"),
            library.get(b"lionEmulatorIsEmulator").expect("exported"),
        )
    };
    let mut given = 0;
    // SAFETY: `given` is a live variable.
    let codes = unsafe { (init(0), version(&mut given), emulator()) };
    assert_eq!((codes, given), ((0, 0, 1), 12_000));
}
