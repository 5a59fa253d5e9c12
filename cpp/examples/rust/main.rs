//! Classifies a tile of raw RGB bytes through the C interface: classify MODEL TILE HEIGHT WIDTH
//!
//! One file without a crate: rustc main.rs -L PREFIX/lib. A project of its own would let bindgen write the
//! declarations from histo/c_api.h.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::ptr;

#[repr(C)]
struct Answer {
    id: u64,
    status: c_int,
    logits: *const f32,
    classes: usize,
    error: *const c_char,
}

#[link(name = "histo")]
extern "C" {
    fn histo_last_error() -> *const c_char;
    fn histo_model_open(path: *const c_char, model: *mut *mut c_void) -> c_int;
    fn histo_model_free(model: *mut c_void);
    fn histo_model_class_name(model: *const c_void, index: usize) -> *const c_char;
    fn histo_engine_create(model: *const c_void, options: *const c_void, engine: *mut *mut c_void) -> c_int;
    fn histo_engine_free(engine: *mut c_void);
    fn histo_queue_create(engine: *const c_void, options: *const c_void, queue: *mut *mut c_void) -> c_int;
    fn histo_queue_free(queue: *mut c_void);
    fn histo_queue_drain(queue: *mut c_void) -> c_int;
    fn histo_queue_submit(
        queue: *mut c_void,
        tile: *const u8,
        tile_size: usize,
        height: usize,
        width: usize,
        callback: extern "C" fn(user: *mut c_void, answer: *const Answer),
        user: *mut c_void,
        id: *mut u64,
    ) -> c_int;
}

/// A handle that is freed where it goes out of scope.
struct Handle(*mut c_void, unsafe extern "C" fn(*mut c_void));

impl Drop for Handle {
    fn drop(&mut self) {
        unsafe { self.1(self.0) }
    }
}

fn text(pointer: *const c_char) -> String {
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn check(status: c_int) -> Result<(), String> {
    match status {
        0 => Ok(()),
        _ => Err(format!("{} (error {status})", text(unsafe { histo_last_error() }))),
    }
}

fn make(free: unsafe extern "C" fn(*mut c_void), create: impl FnOnce(*mut *mut c_void) -> c_int) -> Result<Handle, String> {
    let mut pointer = ptr::null_mut();
    check(create(&mut pointer))?;
    Ok(Handle(pointer, free))
}

type Logits = Result<Vec<f32>, String>;

/// Called by the thread of the queue. `user` lives until the queue is drained.
extern "C" fn take(user: *mut c_void, answer: *const Answer) {
    let (logits, answer) = unsafe { (&mut *(user as *mut Option<Logits>), &*answer) };
    *logits = Some(match answer.status {
        0 => Ok(unsafe { std::slice::from_raw_parts(answer.logits, answer.classes) }.to_vec()),
        _ => Err(text(answer.error)),
    });
}

fn classify(arguments: &[String]) -> Result<(), String> {
    let [_, path, tile, height, width] = arguments else {
        return Err("usage: classify MODEL TILE HEIGHT WIDTH".into());
    };
    let path = CString::new(path.as_str()).map_err(|error| error.to_string())?;
    let pixels = std::fs::read(tile).map_err(|error| format!("{tile}: {error}"))?;
    let size = |text: &String| text.parse::<usize>().map_err(|error| format!("{text}: {error}"));
    let mut answer: Option<Logits> = None; // before the queue, which is freed first

    let model = make(histo_model_free, |to| unsafe { histo_model_open(path.as_ptr(), to) })?;
    let engine = make(histo_engine_free, |to| unsafe { histo_engine_create(model.0, ptr::null(), to) })?;
    let queue = make(histo_queue_free, |to| unsafe { histo_queue_create(engine.0, ptr::null(), to) })?;
    check(unsafe {
        let user = ptr::addr_of_mut!(answer) as *mut c_void;
        let (height, width) = (size(height)?, size(width)?);
        histo_queue_submit(queue.0, pixels.as_ptr(), pixels.len(), height, width, take, user, ptr::null_mut())
    })?;
    check(unsafe { histo_queue_drain(queue.0) })?;
    for (k, logit) in answer.ok_or("no answer")??.iter().enumerate() {
        println!("{}\t{logit:e}", text(unsafe { histo_model_class_name(model.0, k) }));
    }
    Ok(())
}

fn main() {
    if let Err(error) = classify(&std::env::args().collect::<Vec<_>>()) {
        eprintln!("classify: {error}");
        std::process::exit(1);
    }
}
