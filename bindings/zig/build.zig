//! A package with the module `attention`: with a dependency on this folder in build.zig.zon,
//!
//!     const options = .{ .target = target, .optimize = optimize };
//!     const flash_attention = b.dependency("flash_attention", options);
//!     program.root_module.addImport("attention", flash_attention.module("attention"));
//!
//! Options of it, and of zig build test here: library, a path of libflash_attention.so or .a (else
//! that of the system is linked); include, the folder of flash_attention.h (else that of this
//! repository); data, tensors of a real model, for the tests alone (else those of this repository).
const std = @import("std");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.standardOptimizeOption(.{});
    const library = b.option([]const u8, "library", "libflash_attention.so or libflash_attention.a; else the system's");
    const include = b.option([]const u8, "include", "where flash_attention.h is");
    const data = b.option([]const u8, "data", "the tensors of a real model") orelse "../../examples_c/data";

    const header = b.addTranslateC(.{
        .root_source_file = if (include) |folder|
            .{ .cwd_relative = b.pathJoin(&.{ folder, "flash_attention.h" }) }
        else
            b.path("../../include/flash_attention.h"),
        .target = target,
        .optimize = optimize,
    });
    header.defineCMacro("FA_NO_HELPERS", null);
    const attention = b.addModule("attention", .{
        .root_source_file = b.path("attention.zig"),
        .target = target,
        .optimize = optimize,
        .link_libc = true,
        .imports = &.{.{ .name = "flash_attention_h", .module = header.createModule() }},
    });
    if (library) |path| {
        attention.addObjectFile(.{ .cwd_relative = path });
        if (std.mem.endsWith(u8, path, ".a")) {
            // What Rust's standard library needs besides libc.
            attention.linkSystemLibrary("unwind", .{});
        } else {
            attention.addRPath(.{ .cwd_relative = std.fs.path.dirname(path) orelse "." });
        }
    } else {
        attention.linkSystemLibrary("flash_attention", .{});
    }

    const options = b.addOptions();
    options.addOption([]const u8, "data", data);
    const step = b.step("test", "The binding's own tests, and attention of a real model against its exact outputs");
    for ([_][]const u8{ "attention_test.zig", "fields_test.zig", "example/real_model.zig", "example/paged_decode.zig" }) |source| {
        const tests = b.addTest(.{
            .name = std.fs.path.stem(source),
            .root_module = b.createModule(.{
                .root_source_file = b.path(source),
                .target = target,
                .optimize = optimize,
                .imports = &.{ .{ .name = "attention", .module = attention }, .{ .name = "options", .module = options.createModule() } },
            }),
        });
        const run = b.addRunArtifact(tests);
        run.setCwd(b.path("."));
        step.dependOn(&run.step);
        // To look at what it links.
        b.getInstallStep().dependOn(&b.addInstallArtifact(tests, .{}).step);
    }
}
