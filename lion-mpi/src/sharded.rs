//! The optimizer whose state is divided among the ranks: its parameters and settings.

use crate::Error;
use crate::abort::AbortOnPanic;
use crate::agree::{Field, Item, agree, hash_of, on_all};
use crate::arguments::register_whole;
use crate::division::{Division, default_bucket};
use crate::fields::{hash_hyper, hyper_fields};
use lion::checkpoint::{shard_name, split_shard_name};
use lion::tensor::BLOCK;
use lion::{Dtype, Handle, Lion, LionBuilder, Overrides, ParamSpec, StepArgs};
use mpi::topology::SimpleCommunicator;
use mpi::traits::Communicator;
use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Whether the gradients of the ranks are summed or averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reduction {
    /// The gradient of the step is the sum of those of the ranks.
    #[default]
    Sum,
    /// The gradient of the step is the sum times `1 / ranks`. The step multiplies by `grad_scale / ranks`, which is
    /// computed in `f64` and rounded to `f32` once.
    Mean,
}

/// A [`Lion`] whose state is divided among the ranks of a communicator (ZeRO stage 1).
///
/// Every rank has all parameters, and a gradient of its own for each. A step
///
/// 1. sums the gradients over the ranks, in `f32`, in the order of the ranks: `((g0 + g1) + g2) + ...`;
/// 2. steps, on each rank, the blocks that belong to its share;
/// 3. sends the stepped parameters to all ranks.
///
/// The parameters and states have the bits of one [`Lion`] that is given the sums as `f32` gradients, for any number of
/// ranks and all options. The sums themselves depend on the number of ranks, because another number of gradients is
/// added in another order.
///
/// The blocks of 256 elements of all parameters, in the order of their names, are divided into equal shares, to one
/// block. A rank holds the state of its share. In a step a rank sends `(ranks - 1) / ranks` of its gradients, in
/// their own types, and `ranks - 1` times its share of the parameters. It does so in buckets of 4 MiB: while one is
/// stepped, the next and the one before are on their way, as far as MPI makes progress meanwhile. With `max_unorm`,
/// `max_grad_norm` or `RejectStep` a rank also holds the sums of its share, 4 bytes per element, until it steps, because
/// these options need all of them first.
///
/// # Calls of all ranks
/// [`new`](Sharded::new), [`step`](Sharded::step), [`step_with`](Sharded::step_with), [`save`](Sharded::save),
/// [`load`](Sharded::load) and [`allocate`](Sharded::allocate) are calls that all ranks make together. Dropping it is one
/// as well, and must come before MPI is finalized. The other methods are local: every rank must register the same
/// parameters under the same names, in any order, and make the same changes of settings.
///
/// Steps and saves compare names, lengths, types, hyper-parameters and step counts first, and steps their arguments. A
/// difference is an [`Error::Disagreement`] on all ranks, and an error of one rank is an [`Error::OtherRank`] on the
/// others. In both cases nothing has changed, except that the first such call may have allocated the states.
///
/// A panic that drops a `Sharded` ends the whole job; see [`abort_on_panic`](crate::abort_on_panic).
///
/// # Limits
/// Arrays are row-major and in host memory. Names must not end in `@` and a number, because the parts of a parameter
/// have such names. Ranks cannot join or leave. Parameters and gradients are not divided (ZeRO stages 2 and 3).
///
/// ```no_run
/// use lion::{Dtype, Lion8bit, ParamSpec};
/// use lion_mpi::Sharded;
///
/// let universe = mpi::initialize().expect("MPI is initialized once");
/// let mut lion = Sharded::new(&universe.world(), Lion8bit::builder().lr(1e-3))?;
/// let w = lion.register(ParamSpec::new("w", 1 << 20, Dtype::F32))?;
/// let mut weight = vec![0.0f32; 1 << 20];
/// let grad = vec![1.0f32; 1 << 20]; // of the samples of this rank
/// lion.step([(w, &mut weight, &grad)])?;
/// # Ok::<(), lion_mpi::Error>(())
/// ```
pub struct Sharded {
    // Dropped first: freeing a communicator waits for the other ranks.
    _abort: AbortOnPanic,
    /// The parts of this rank, under names such as `w@512`, and for each parameter one of length 0 with its own name,
    /// which has its group, its overrides and its step count.
    pub(crate) lion: Lion,
    /// A copy of the communicator of the caller, so that no message meets one of the caller.
    pub(crate) comm: SimpleCommunicator,
    pub(crate) reduction: Reduction,
    /// The number of blocks of a bucket.
    bucket: usize,
    /// In the order of registration.
    pub(crate) params: Vec<Param>,
    by_handle: HashMap<Handle, usize>,
    /// `None` until the states are allocated.
    pub(crate) shares: Option<Shares>,
    /// Whether a call has changed states in part. It is the same on all ranks.
    pub(crate) damaged: bool,
}

#[derive(Debug)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) len: usize,
    pub(crate) dtype: Dtype,
    /// The parameter of length 0.
    pub(crate) whole: Handle,
}

/// The division of the parameters, and the parts of this rank.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) division: Division,
    /// The parameters by name: the index in the division of each parameter is its position here.
    pub(crate) by_name: Vec<usize>,
    /// The parts of this rank in each bucket: the index in the division, and the part.
    pub(crate) buckets: Vec<Vec<(usize, Handle)>>,
}

/// Shows the optimizer of this rank.
impl fmt::Debug for Sharded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharded")
            .field("rank", &self.comm.rank())
            .field("ranks", &self.comm.size())
            .field("reduction", &self.reduction)
            .field("local", &self.lion)
            .finish()
    }
}

impl Sharded {
    /// Returns an optimizer without parameters, on all ranks of a communicator. All ranks make this call.
    ///
    /// # Errors
    /// [`Error::Lion`] with the errors of [`LionBuilder::build`]; [`Error::OtherRank`], [`Error::Disagreement`].
    pub fn new(comm: &impl Communicator, builder: LionBuilder) -> Result<Self, Error> {
        let comm = comm.duplicate();
        let lion = on_all(&comm, builder.build().map_err(Error::from))?;
        let bucket = default_bucket(comm.size() as usize);
        let sharded = Sharded {
            _abort: AbortOnPanic,
            lion,
            comm,
            reduction: Reduction::default(),
            bucket,
            params: Vec::new(),
            by_handle: HashMap::new(),
            shares: None,
            damaged: false,
        };
        sharded.agree_on_call("new", &StepArgs::new())?;
        Ok(sharded)
    }

    /// Sets whether the gradients are summed or averaged. The default is [`Reduction::Sum`].
    #[must_use]
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Sets the number of elements per bucket, over all ranks. It is rounded down to whole blocks of 256 per rank, at least
    /// one. Call it before the states are allocated. A rank has up to six buffers of the size of a bucket. The default is
    /// 4 MiB of `f32`, and 64 KiB per rank on more than 64 ranks.
    #[must_use]
    pub fn bucket_elements(mut self, elements: usize) -> Self {
        self.bucket = elements / BLOCK;
        self
    }

    /// Registers a parameter. Its state is allocated in the first call of all ranks that needs it.
    ///
    /// # Errors
    /// [`Error::Lion`] with the errors of [`Lion::register`]; [`Error::Unsupported`] for a shard and for a name that ends
    /// in `@` and a number; [`Error::Allocated`].
    pub fn register(&mut self, spec: ParamSpec) -> Result<Handle, Error> {
        let name = spec.name().to_owned();
        if self.shares.is_some() {
            return Err(Error::Allocated { parameter: name });
        }
        if split_shard_name(&name).is_some() {
            return Err(Error::Unsupported {
                parameter: Some(name),
                what: "a name that ends in `@` and a number",
            });
        }
        let whole = register_whole(&mut self.lion, &spec)?;
        let (len, dtype) = (spec.len(), spec.dtype());
        self.params.push(Param {
            name,
            len,
            dtype,
            whole,
        });
        self.by_handle.insert(whole, self.params.len() - 1);
        Ok(whole)
    }

    /// Adds a group, whose parameters share hyper-parameters; see [`Lion::add_group`].
    ///
    /// # Errors
    /// [`Error::Lion`] with the errors of [`Lion::add_group`].
    pub fn add_group(&mut self, name: &str, overrides: Overrides) -> Result<(), Error> {
        Ok(self.lion.add_group(name, overrides)?)
    }

    /// Sets the defaults that are set in `changes`; see [`Lion::configure`].
    ///
    /// # Errors
    /// [`Error::Lion`] with the errors of [`Lion::configure`].
    pub fn configure(&mut self, changes: Overrides) -> Result<(), Error> {
        self.lion.configure(changes)?;
        self.set_seeds()
    }

    /// Sets the overrides of a group that are set in `changes`; see [`Lion::configure_group`].
    ///
    /// # Errors
    /// [`Error::Lion`] with the errors of [`Lion::configure_group`].
    pub fn configure_group(&mut self, group: &str, changes: Overrides) -> Result<(), Error> {
        self.lion.configure_group(group, changes)?;
        self.set_seeds()
    }

    /// Sets the overrides of a parameter that are set in `changes`; see [`Lion::configure_parameter`].
    ///
    /// # Errors
    /// [`Error::NotAParameter`]; [`Error::Lion`] with the errors of [`Lion::configure_parameter`]. Then nothing has
    /// changed.
    pub fn configure_parameter(&mut self, handle: Handle, changes: Overrides) -> Result<(), Error> {
        let changed = self.index(handle)?;
        let whole = self.params[changed].whole;
        // What the whole accepts, its parts accept: they have its type, its length and its other settings.
        self.lion.configure_parameter(whole, changes)?;
        for (param, part) in self.parts() {
            if param == changed {
                self.lion.configure_parameter(part, changes)?;
            }
        }
        self.set_seeds()
    }

    /// Returns the parts of this rank, each with the index of its parameter.
    fn parts(&self) -> Vec<(usize, Handle)> {
        let Some(shares) = &self.shares else {
            return Vec::new();
        };
        let parts = shares.buckets.iter().flatten();
        let parts = parts.map(|&(index, part)| (shares.by_name[index], part));
        parts.collect()
    }

    /// Gives each part the seed of its parameter, which may come from new defaults, a group or a checkpoint.
    pub(crate) fn set_seeds(&mut self) -> Result<(), Error> {
        for (param, part) in self.parts() {
            let seed = self.lion.info(self.params[param].whole)?.hyper.seed;
            if self.lion.info(part)?.hyper.seed != seed {
                let overrides = Overrides::new().seed(seed);
                self.lion.configure_parameter(part, overrides)?;
            }
        }
        Ok(())
    }

    /// Sets the learning rate of the defaults; see [`Lion::set_lr`].
    ///
    /// # Errors
    /// [`Error::Lion`] with [`lion::Error::InvalidHyper`].
    pub fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        Ok(self.lion.set_lr(lr)?)
    }

    /// Returns the number of steps of a parameter.
    ///
    /// # Errors
    /// [`Error::Lion`] with [`lion::Error::UnknownHandle`]; [`Error::NotAParameter`].
    pub fn steps(&self, handle: Handle) -> Result<u64, Error> {
        let param = self.index(handle)?;
        Ok(self.lion.info(self.params[param].whole)?.steps)
    }

    /// Returns the bytes of the states of this rank.
    pub fn state_bytes(&self) -> usize {
        self.lion.state_bytes()
    }

    /// Returns the optimizer of this rank. It has a parameter of length 0 for each parameter, and one for each part of
    /// a parameter that belongs to this rank, named `NAME@OFFSET`.
    pub fn local(&self) -> &Lion {
        &self.lion
    }

    /// Returns the index of a parameter.
    pub(crate) fn index(&self, handle: Handle) -> Result<usize, Error> {
        // The optimizer refuses the handles of others.
        self.lion.info(handle)?;
        self.by_handle
            .get(&handle)
            .copied()
            .ok_or(Error::NotAParameter)
    }

    /// Divides the parameters among the ranks and allocates the states, if that is not done. All ranks make this call.
    /// The first step does the same.
    ///
    /// # Errors
    /// [`Error::Disagreement`]; [`Error::OtherRank`]; [`Error::Lion`] with [`lion::Error::Backend`] if a state cannot be
    /// allocated. Then no state is allocated.
    pub fn allocate(&mut self) -> Result<(), Error> {
        if self.shares.is_some() {
            return Ok(());
        }
        let mut by_name: Vec<usize> = (0..self.params.len()).collect();
        by_name.sort_unstable_by(|&a, &b| self.params[a].name.cmp(&self.params[b].name));
        self.agree_on_call("allocate", &StepArgs::new())?;
        self.agree_on_params(&by_name)?;
        let lens = by_name.iter().map(|&param| self.params[param].len);
        let division = Division::new(lens.collect(), self.comm.size() as usize, self.bucket);
        let mut buckets = vec![Vec::new(); division.buckets()];
        let done = self.register_parts(&division, &by_name, &mut buckets);
        if let Err(error) = on_all(&self.comm, done) {
            for (_, handle) in buckets.into_iter().flatten() {
                self.lion.remove(handle)?;
            }
            return Err(error);
        }
        self.shares = Some(Shares {
            division,
            by_name,
            buckets,
        });
        Ok(())
    }

    /// Returns the parameters in the order of their names, once the states are allocated.
    pub(crate) fn by_name(&self) -> &[usize] {
        self.shares.as_ref().map_or(&[], |shares| &shares.by_name)
    }

    /// Registers the parts of this rank. After an error, `buckets` has those that are registered.
    fn register_parts(
        &mut self,
        division: &Division,
        by_name: &[usize],
        buckets: &mut [Vec<(usize, Handle)>],
    ) -> Result<(), Error> {
        for (bucket, parts) in buckets.iter_mut().enumerate() {
            for (index, range) in division.pieces(self.comm.rank() as usize, bucket) {
                let param = &self.params[by_name[index]];
                let whole = self.lion.info(param.whole)?;
                // The seed of the whole parameter, which depends on its name.
                let overrides = whole.overrides.seed(whole.hyper.seed);
                let name = shard_name(&param.name, range.start);
                let mut spec = ParamSpec::new(name, range.len(), param.dtype)
                    .shard(range.start, param.len)
                    .overrides(overrides);
                if let Some(group) = whole.group {
                    spec = spec.group(group);
                }
                let handle = self.lion.register(spec)?;
                parts.push((index, handle));
            }
        }
        Ok(())
    }

    /// Checks that all ranks make the same call with the same arguments and settings.
    pub(crate) fn agree_on_call(&self, call: &str, args: &StepArgs) -> Result<(), Error> {
        let item = self.call_item(call, args);
        agree(&self.comm, Ok(&[item]), |_| self.call_fields(call, args))
    }

    pub(crate) fn call_item(&self, call: &str, args: &StepArgs) -> Item<'static> {
        let fields = self.call_fields(call, args);
        Item {
            name: None,
            hash: hash_of(fields),
        }
    }

    pub(crate) fn call_fields(&self, call: &str, args: &StepArgs) -> Vec<Field> {
        vec![
            ("the call", call.to_owned()),
            ("the arguments", format!("{args:?}")),
            ("the reduction", format!("{:?}", self.reduction)),
            ("the number of blocks of a bucket", self.bucket.to_string()),
            ("on_non_finite", format!("{:?}", self.lion.on_non_finite())),
            ("the number of parameters", self.params.len().to_string()),
        ]
    }

    /// Checks that no earlier call has changed states in part. All ranks return the same.
    pub(crate) fn check_whole(&self) -> Result<(), Error> {
        match self.damaged {
            true => Err(Error::Damaged),
            false => Ok(()),
        }
    }

    /// Checks that all ranks have the same parameters. `params` is in the order of the names.
    pub(crate) fn agree_on_params(&self, params: &[usize]) -> Result<(), Error> {
        let items = params.iter().map(|&it| self.param_item(it, 0));
        let items = items.collect::<Result<Vec<_>, Error>>()?;
        agree(&self.comm, Ok(&items), |i| self.param_fields(params[i]))
    }

    /// Returns a parameter as an item. `more` is the hash of what else must be equal.
    pub(crate) fn param_item(&self, param: usize, more: u64) -> Result<Item<'_>, Error> {
        let Param {
            name, len, dtype, ..
        } = &self.params[param];
        let info = self.lion.info(self.params[param].whole)?;
        let mut hasher = DefaultHasher::new();
        (len, dtype, info.steps, more).hash(&mut hasher);
        hash_hyper(&info.hyper, &mut hasher);
        Ok(Item {
            name: Some(name),
            hash: hasher.finish(),
        })
    }

    pub(crate) fn param_fields(&self, param: usize) -> Vec<Field> {
        let Param { len, dtype, .. } = &self.params[param];
        let mut fields = vec![
            ("the length", len.to_string()),
            ("the type", dtype.to_string()),
        ];
        if let Ok(info) = self.lion.info(self.params[param].whole) {
            fields.push(("the number of steps", info.steps.to_string()));
            fields.extend(hyper_fields(&info.hyper));
        }
        fields
    }
}
