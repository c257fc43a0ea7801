//! Unsupported functions, which are exported only so that programs that link to them can be loaded. They return
//! `CUDA_ERROR_NOT_SUPPORTED`.

use super::status::Status;

/// Exports functions that return `CUDA_ERROR_NOT_SUPPORTED`. They take no parameters: in the C calling convention the caller
/// passes and removes the arguments, so a function may ignore them.
macro_rules! unsupported {
    ($($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> u32 {
                Status::NOT_SUPPORTED.0
            }
        )*
    };
}

unsupported! {
    // Arrays, textures and surfaces.
    cuArray3DCreate_v2 cuArray3DGetDescriptor_v2 cuArrayDestroy cuMemcpy2D_v2 cuMemcpyAtoH_v2 cuMemcpyHtoA_v2
    cuSurfObjectCreate cuSurfObjectDestroy cuSurfObjectGetResourceDesc cuTexObjectCreate cuTexObjectDestroy
    cuTexObjectGetResourceDesc cuTexObjectGetResourceViewDesc
    // Memory of other interfaces.
    cuDestroyExternalMemory cuExternalMemoryGetMappedBuffer cuImportExternalMemory
    // Graphs.
    cuGraphAddKernelNode cuGraphCreate cuGraphDebugDotPrint cuGraphDestroy cuGraphGetEdges cuGraphGetNodes
    cuGraphKernelNodeGetParams cuGraphNodeGetType
    // Linking.
    cuLinkAddData_v2 cuLinkComplete cuLinkCreate_v2 cuLinkDestroy
}
