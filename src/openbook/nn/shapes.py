"""The legend of the whole project: one letter per size, the same in every shape comment.

    B  batch rows            H  query heads           E  experts
    T  new tokens in a row   G  key/value heads       V  vocabulary
    S  visible tokens        K  head dimension        N  state size
    D  model dimension       F  feed-forward hidden   R  rank
    C  channels of a recurrent layer

A comment such as `# [B,T,H,K]` stands where a tensor is born or reshaped.
"""
