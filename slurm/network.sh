#!/bin/bash
# NCCL, UCX and InfiniBand, in one place; every rank sources it. What is commented out depends on the cluster:
# copy the file, uncomment, and name the copy in the settings ([environment] network).

# Say what is wrong, and which network was chosen; INFO to see every ring.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# A collective that fails or hangs ends its process instead of blocking: the job is then requeued.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}

# Long contexts fill memory to the brim with tensors of ever changing sizes; growing segments avoid fragmentation.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

# Communication follows the order of launches, so that tensor and context parallelism overlap with computation.
# Megatron asks for it up to Hopper.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}

# The InfiniBand adapters that carry NCCL, without those of storage; `ibstat -l` lists them.
# export NCCL_IB_HCA=mlx5_0,mlx5_1,mlx5_2,mlx5_3,mlx5_4,mlx5_5,mlx5_6,mlx5_7

# The interface for the first contact of NCCL and gloo, where a node has several; `ip -brief address` lists them.
# export NCCL_SOCKET_IFNAME=eth0
# export GLOO_SOCKET_IFNAME=eth0

# RoCE instead of InfiniBand: which GID, and the traffic class that the switches keep free of loss.
# export NCCL_IB_GID_INDEX=3
# export NCCL_IB_TC=106

# How far from a GPU an adapter may be and still read its memory directly (GPUDirect RDMA): PHB where both are
# attached to the same CPU.
# export NCCL_NET_GDR_LEVEL=PHB

# Reductions inside the switches (SHARP), where the fabric has it.
# export NCCL_COLLNET_ENABLE=1

# UCX, where HPC-X's NCCL plug-in or UCC is used: the same adapters, reliable connections, shared memory within a node.
# export UCX_NET_DEVICES=mlx5_0:1
# export UCX_TLS=rc,cuda_copy,cuda_ipc,sm,self
