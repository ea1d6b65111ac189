"""`openbook top URL`"""
