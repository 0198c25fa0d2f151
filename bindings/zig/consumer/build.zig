//! A program of another project, which has the package as a dependency.
const std = @import("std");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.standardOptimizeOption(.{});
    const library = b.option([]const u8, "library", "libflash_attention.so or libflash_attention.a");
    const flash_attention = if (library) |path|
        b.dependency("flash_attention", .{ .target = target, .optimize = optimize, .library = path })
    else
        b.dependency("flash_attention", .{ .target = target, .optimize = optimize });
    const program = b.addExecutable(.{
        .name = "consumer",
        .root_module = b.createModule(.{ .root_source_file = b.path("main.zig"), .target = target, .optimize = optimize }),
    });
    program.root_module.addImport("attention", flash_attention.module("attention"));
    b.installArtifact(program);
    b.step("run", "Run it").dependOn(&b.addRunArtifact(program).step);
}
