//! A step completes on the calling thread alone if the threads of the pool are busy.
//!
//! Each program runs in a child process, which is killed if it hangs.
#![allow(clippy::unwrap_used)]

use lion::cpu::Cpu;
use lion::{Dtype, Handle, Lion, OnNonFinite, ParamSpec};
use lion_test_support::child;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Set in the environment of the processes that run one program each.
const VARIABLE: &str = "LION_THREADS_TEST";

/// Time limit of a program. Each takes a second or two on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Number of elements of a step that is shared between threads.
const N: usize = 1 << 20;

/// Runs a test of this file in a child process, and fails if it does not end in time. Returns true
/// in the child process, which then executes the body of the test.
fn is_child(test: &str) -> bool {
    is_child_with(test, |_| {})
}

fn is_child_with(test: &str, prepare: impl FnOnce(&mut Command)) -> bool {
    if std::env::var(VARIABLE).is_ok() {
        return true;
    }
    let mut command = child(test);
    command.env(VARIABLE, test).stdout(Stdio::null());
    prepare(&mut command);
    let mut process = command.spawn().unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > LIMIT {
            process.kill().unwrap();
            process.wait().unwrap();
            panic!("{test} hangs: it was killed after {LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{test}: {status}");
    false
}

fn pool(threads: usize) -> Arc<ThreadPool> {
    let builder = ThreadPoolBuilder::new().num_threads(threads);
    Arc::new(builder.build().unwrap())
}

/// An optimizer of one large parameter, with its arrays.
struct Model {
    lion: Lion,
    handle: Handle,
    param: Vec<f32>,
    grad: Vec<f32>,
    steps: u32,
}

impl Model {
    fn new(lion: Lion) -> Self {
        let mut lion = lion;
        let spec = ParamSpec::new("w", N, Dtype::F32);
        Model {
            handle: lion.register(spec).unwrap(),
            lion,
            param: vec![0.0; N],
            grad: vec![1.0; N],
            steps: 0,
        }
    }

    fn on(cpu: Cpu) -> Self {
        Self::new(Lion::builder().lr(0.5).backend(cpu).build().unwrap())
    }

    /// Runs a step, and checks that it has reached the last element.
    fn step(&mut self) {
        let update = (self.handle, &mut self.param, &self.grad);
        let report = self.lion.step([update]).unwrap();
        assert_eq!(report.skipped_blocks(), 0);
        self.steps += 1;
        assert_eq!(self.param[N - 1], -0.5 * self.steps as f32);
    }
}

/// Occupies all threads of a pool until the receiver is dropped.
fn occupy(pool: &ThreadPool) -> Receiver<()> {
    let (sender, receiver) = sync_channel(0);
    let (entered, inside) = channel();
    for _ in 0..pool.current_num_threads() {
        let (sender, entered) = (sender.clone(), entered.clone());
        pool.spawn(move || {
            entered.send(()).unwrap();
            // Blocks until the sender is dropped.
            sender.send(()).unwrap_err();
        });
    }
    for _ in 0..pool.current_num_threads() {
        inside.recv().unwrap();
    }
    receiver
}

#[test]
fn step_completes_while_all_global_threads_are_busy() {
    if !is_child("step_completes_while_all_global_threads_are_busy") {
        return;
    }
    let mut model = Model::on(Cpu::new().unwrap());
    let (sender, batches) = sync_channel(1);
    for _ in 0..rayon::current_num_threads() {
        let sender = sender.clone();
        rayon::spawn(move || while sender.send(vec![1.0f32; 16]).is_ok() {});
    }
    for _ in 0..20 {
        let batch = batches.recv().unwrap();
        model.grad[..batch.len()].copy_from_slice(&batch);
        model.step();
    }
}

/// Steps one optimizer in a mutex from many tasks, which `spawn` puts into a pool.
fn step_from_tasks(model: Model, spawn: impl Fn(Box<dyn FnOnce() + Send>)) {
    const TASKS: usize = 300;
    let model = Arc::new(Mutex::new(model));
    let (done, results) = channel();
    for _ in 0..TASKS {
        let (model, done) = (Arc::clone(&model), done.clone());
        spawn(Box::new(move || {
            model.lock().unwrap().step();
            done.send(()).unwrap();
        }));
    }
    drop(done);
    assert_eq!(results.iter().count(), TASKS);
}

#[test]
fn tasks_of_the_global_pool_step_one_optimizer_through_a_mutex() {
    if !is_child("tasks_of_the_global_pool_step_one_optimizer_through_a_mutex") {
        return;
    }
    step_from_tasks(Model::on(Cpu::new().unwrap()), rayon::spawn);
}

#[test]
fn tasks_of_the_step_pool_step_one_optimizer_through_a_mutex() {
    if !is_child("tasks_of_the_step_pool_step_one_optimizer_through_a_mutex") {
        return;
    }
    for threads in [1, 2, 4] {
        let pool = pool(threads);
        let model = Model::on(Cpu::new().unwrap().pool(Arc::clone(&pool)));
        step_from_tasks(model, |task| pool.spawn(task));
    }
}

#[test]
fn step_completes_while_all_threads_of_its_pool_are_busy() {
    if !is_child("step_completes_while_all_threads_of_its_pool_are_busy") {
        return;
    }
    for threads in [1, 2, 5] {
        let pool = pool(threads);
        let mut model = Model::on(Cpu::new().unwrap().pool(Arc::clone(&pool)));
        let busy = occupy(&pool);
        for _ in 0..3 {
            model.step();
        }
        drop(busy);
        model.step();
    }
}

#[test]
fn norms_and_counts_complete_while_all_threads_of_the_pool_are_busy() {
    if !is_child("norms_and_counts_complete_while_all_threads_of_the_pool_are_busy") {
        return;
    }
    for threads in [1, 2, 5] {
        let pool = pool(threads);
        let lion = Lion::builder()
            .lr(0.5)
            .max_unorm(1.0)
            .on_non_finite(OnNonFinite::RejectStep)
            .backend(Cpu::new().unwrap().pool(Arc::clone(&pool)));
        let mut model = Model::new(lion.build().unwrap());
        let busy = occupy(&pool);
        // The update of a parameter of norm 0 is not clipped.
        model.step();
        // The norms of update and parameter are equal, so `max_unorm` 0.5 halves the update.
        model.param.fill(-0.25);
        let update = (model.handle, &mut model.param, &model.grad);
        model.lion.step([update]).unwrap();
        assert!(model.param.iter().all(|&p| p == -0.375));
        model.grad[N - 1] = f32::NAN;
        let update = (model.handle, &mut model.param, &model.grad);
        model.lion.step([update]).unwrap_err();
        drop(busy);
    }
}

/// Skipped blocks are counted for the tensor that contains them, independent of the thread.
#[test]
fn skipped_blocks_are_counted_for_their_parameters() {
    const SMALL: usize = 5000;
    for threads in [1, 4] {
        let cpu = Cpu::new().unwrap().pool(pool(threads));
        let mut model = Model::on(cpu);
        let spec = |i| ParamSpec::new(format!("small{i}"), 16, Dtype::F32);
        let handles: Vec<_> = (0..SMALL)
            .map(|i| model.lion.register(spec(i)).unwrap())
            .collect();
        let (mut params, nan) = (vec![0.0f32; 16 * SMALL], [f32::NAN; 16]);
        // Every tenth block of the large parameter, and every second small parameter.
        for block in model.grad.chunks_mut(256).step_by(10) {
            block[7] = f32::INFINITY;
        }
        let small = handles.iter().zip(params.chunks_mut(16)).enumerate();
        let grad = |i: usize| {
            if i.is_multiple_of(2) {
                &nan
            } else {
                &[1.0; 16]
            }
        };
        let updates = small.map(|(i, (&handle, p))| lion::update(handle, p, grad(i)));
        let large = lion::update(model.handle, &mut model.param, &model.grad);
        let report = model.lion.step(updates.chain([large])).unwrap();
        let mut expected: Vec<(String, u64)> = (0..SMALL)
            .step_by(2)
            .map(|i| (format!("small{i}"), 1))
            .collect();
        expected.push(("w".to_owned(), (N as u64 / 256).div_ceil(10)));
        let found = report.skipped.iter();
        let found: Vec<_> = found
            .map(|skipped| (skipped.parameter.to_string(), skipped.skipped))
            .collect();
        assert_eq!(found, expected);
    }
}

/// Returns the names of the threads of this process, from the system.
#[cfg(target_os = "linux")]
fn threads_of_the_shared_pool() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| {
        let path = task.unwrap().path().join("comm");
        // A thread may end between the two calls.
        std::fs::read_to_string(path).unwrap_or_default()
    });
    names.filter(|name| name.starts_with("lion-cpu-")).count()
}

#[cfg(target_os = "linux")]
#[test]
fn optimizers_share_one_pool_that_is_created_on_first_use() {
    let test = "optimizers_share_one_pool_that_is_created_on_first_use";
    if !is_child_with(test, |command| {
        command.env("RAYON_NUM_THREADS", "3");
    }) {
        return;
    }
    let mut small = Lion::builder()
        .backend(Cpu::new().unwrap())
        .build()
        .unwrap();
    let w = small
        .register(ParamSpec::new("w", 1000, Dtype::F32))
        .unwrap();
    small
        .step([(w, &mut vec![0.0f32; 1000], &vec![1.0f32; 1000])])
        .unwrap();
    assert_eq!(threads_of_the_shared_pool(), 0);
    for _ in 0..2 {
        Model::on(Cpu::new().unwrap()).step();
    }
    // A thread sets its name after it has started.
    while threads_of_the_shared_pool() < 3 {
        thread::yield_now();
    }
    assert_eq!(threads_of_the_shared_pool(), 3);
}

/// Optimizers that share a paged backend step one at a time, called by tasks of the pool in which their steps run.
#[cfg(target_os = "linux")]
#[test]
fn paged_optimizers_step_in_tasks_of_one_pool() {
    use lion::{PagedLion32bit, Paging};
    if !is_child("paged_optimizers_step_in_tasks_of_one_pool") {
        return;
    }
    for threads in [1, 3] {
        let pool = pool(threads);
        let paging = Paging::in_folder(std::env::temp_dir()).budget(1 << 20);
        let cpu = Cpu::new().unwrap().pool(Arc::clone(&pool));
        let cpu = cpu.paging(&paging).unwrap();
        let models: Vec<_> = (0..3)
            .map(|_| {
                let lion = PagedLion32bit::builder().lr(0.5).backend(cpu.clone());
                Arc::new(Mutex::new(Model::new(lion.build().unwrap())))
            })
            .collect();
        let (done, results) = channel();
        for i in 0..18 {
            let (model, done) = (Arc::clone(&models[i % models.len()]), done.clone());
            pool.spawn(move || {
                model.lock().unwrap().step();
                done.send(()).unwrap();
            });
        }
        drop(done);
        assert_eq!(results.iter().count(), 18);
        let busy = occupy(&pool);
        models[0].lock().unwrap().step();
        drop(busy);
    }
}
